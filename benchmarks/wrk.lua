-- For wrk: send the environment variable BODY as JSON; at the end print rate, latencies in milliseconds and errors.
wrk.method, wrk.headers["Content-Type"], wrk.body = "POST", "application/json", os.getenv("BODY")

done = function(summary, latency)
    local errors = summary.errors
    print(string.format('{"rate": %f, "p50": %f, "p99": %f, "errors": %d}', 1e6 * summary.requests / summary.duration,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
