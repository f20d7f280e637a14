"""POST /predict through Flask's test client: every input format and every error."""

import base64
import gzip
import json
import zlib

import numpy as np
import pytest
from werkzeug.sansio.multipart import MultipartDecoder

from serve.app import create_app
from serve.config import Config
from serve.release import read
from tests.serve.hostile import encode, png_chunk, with_chunks
from tests.serve.releases import make_release
from train.paths import RELEASE, ROOT

JSON, RAW, FORM = "application/json", "application/octet-stream", "multipart/form-data; boundary=b"
SEVEN = (ROOT / "docs/seven.png").read_bytes()


def enlarged(image):
    """Return the digit as a PNG of 280×280, black on white."""
    return encode(255 - np.kron(image, np.ones((10, 10), np.uint8)))


def predict(client, content, content_type, query="", **headers):
    return client.post(f"/predict{query}", data=content, content_type=content_type, headers=headers)


def pixels(client, content, content_type=JSON, query="", **headers):
    """Return the pixels that the model was given, uint8 [N, 28, 28]."""
    answer = predict(client, content, content_type, f"?pixels=true{query}", **headers)
    return np.array([prediction["pixels"] for prediction in answer.json["predictions"]])


def digits(answer):
    assert answer.status_code == 200, answer.text
    return [prediction["digit"] for prediction in answer.json["predictions"]]


def problem(answer, status):
    """Check that the response is an RFC 9457 problem, and return its detail."""
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    assert (answer.json["status"], answer.json["type"]) == (status, "about:blank")
    return answer.json["detail"]


def data_url(image, format):
    return f"data:image/{format.lower()};base64,{base64.b64encode(encode(image, format)).decode()}"


def part(name, content, *more):
    head = "; ".join(["Content-Disposition: form-data", f'name="{name}"', *more])
    return b"--b\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
FORMS = {
    "rows": lambda image: {"image": image.tolist()},
    "numbers": lambda image: {"image": image.reshape(-1).tolist()},
    "base64": lambda image: {"image": base64.b64encode(encode(image)).decode()},
    "base64 without padding": lambda image: {"image": base64.b64encode(encode(image)).decode().rstrip("=")},
    "base64url": lambda image: {"image": base64.urlsafe_b64encode(encode(image)).decode()},
    "base64 in lines": lambda image: {"image": base64.encodebytes(encode(image)).decode()},
    "[28, 28, 1]": lambda image: {"image": image[:, :, None].tolist()},
    "many, [1, 1, 28, 28]": lambda image: {"images": [[image.tolist()]]},
    **{f"data URL of {format}": lambda image, format=format: {"image": data_url(image, format)} for format in FORMATS},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_json_format(client, images, labels, form):
    found = [digits(predict(client, json.dumps(FORMS[form](image)), JSON)) for image in images[:5]]
    assert found == [[label] for label in labels[:5]]


@pytest.mark.parametrize("preprocess", ["auto", "none"])
def test_numbers_of_at_most_1_are_read_as_0_to_1_and_fractions_are_rounded(client, images, preprocess):
    mask = images[1] > 127
    sent = [images[0].tolist(), (images[0] / 255).tolist(), (mask * 1).tolist(), (mask * 1.0).tolist()]
    whole, fractions, bits, floats = pixels(client, json.dumps({"images": sent}), query=f"&preprocess={preprocess}")
    assert np.array_equal(whole, images[0])
    assert np.array_equal(fractions, images[0])
    assert np.array_equal(bits, floats)
    assert bits.max() == 255
    assert pixels(client, json.dumps({"image": [0.0] * 784}), query="&preprocess=none").max() == 0
    assert (pixels(client, json.dumps({"image": [6.6] * 784}), query="&preprocess=none") == 7).all()


@pytest.mark.parametrize(
    "content_type", [JSON, "image/png", RAW, "image/jpg", "text/plain", "application/x-www-form-urlencoded", ""]
)
def test_the_bytes_of_a_body_say_what_it_is(client, images, content_type):
    png, numbers = encode(images[0]), json.dumps({"image": images[0].tolist()})
    of_784_bytes = with_chunks(png, png_chunk(b"tEXt", b"k\0" + bytes(784 - len(png) - 14)))
    pictures = [of_784_bytes, *(encode(images[0], format) for format in FORMATS)]
    texts = [numbers, "\ufeff" + numbers, data_url(images[0], "JPEG"), base64.b64encode(png).decode()]
    bodies = {JSON: texts[:2], "image/png": pictures, RAW: pictures}.get(content_type, pictures + texts)
    assert [digits(predict(client, body, content_type)) for body in bodies] == [[7]] * len(bodies)


def test_every_picture_of_a_form_counts_in_the_order_sent(client, images, labels):
    pictures = [encode(image) for image in images[:5]]
    parts = [
        part("csrf_token", b"nuHuJ5Rk"),
        part("digit", pictures[0], 'filename="7.png"'),
        part("image", data_url(images[1], "JPEG").encode()),
        part("digit", pictures[2], 'filename=""\r\nContent-Type: image/png'),
        part("file", pictures[3]),
        part("user", b"7"),
        part("image", base64.b64encode(pictures[4])),
        part("empty", b"", 'filename=""\r\nContent-Type: application/octet-stream'),
        b"--b--\r\n",
    ]
    assert digits(predict(client, b"".join(parts), FORM)) == labels[:5].tolist()


def test_a_form_may_have_as_many_images_as_a_request_and_other_fields(images):
    client = create_app(Config(max_batch=20)).test_client()
    body = b"".join(part("a", encode(images[0])) for _ in range(20)) + part("token", b"x") * 100
    assert digits(predict(client, body + b"--b--", FORM)) == [7] * 20
    assert "at most 120 parts" in problem(predict(client, body + part("token", b"x") + b"--b--", FORM), 413)
    large = predict(client, b"--b\r\na: " + bytes(600_000), FORM)
    assert "parts with at most 500000 bytes of headers each" in problem(large, 413)


def test_a_large_form_yields_to_the_event_loop_while_it_is_parsed(client, images, monkeypatch):
    done = []
    monkeypatch.setattr("serve.routes.body.yield_to_event_loop", lambda: done.append("yield"))
    receive = MultipartDecoder.receive_data
    monkeypatch.setattr(MultipartDecoder, "receive_data", lambda *piece: (done.append("parse"), receive(*piece))[1])
    parts = part("note", bytes(90_000)) + part("image", encode(images[0]), 'filename="7.png"') + b"--b--"
    assert digits(predict(client, parts, FORM)) == [7]
    assert done == ["parse", "yield", "parse", "parse"]  # the last "parse" is for the end of the body


@pytest.mark.parametrize(("count", "content_type", "yields"), [(3, FORM, 2), (11, RAW, 1)], ids=["pictures", "pixels"])
def test_a_batch_yields_to_the_event_loop_between_pictures_and_every_ten_images(
    images, monkeypatch, count, content_type, yields
):
    client, done = create_app(Config()).test_client(), []
    monkeypatch.setattr("serve.routes.images.yield_to_event_loop", lambda: done.append("yield"))
    some = images[:count]
    parts = b"".join(part("image", encode(image), 'filename="7.png"') for image in some) + b"--b--"
    assert predict(client, parts if content_type == FORM else some.tobytes(), content_type).status_code == 200
    assert len(done) == yields


PACKED = gzip.compress(bytes(784))
ENCODINGS = {
    "gzip": gzip.compress,
    "GZIP": lambda body: gzip.compress(body[:99]) + gzip.compress(b"") + gzip.compress(body[99:]),
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": lambda body: (packer := zlib.compressobj(wbits=-15)).compress(body) + packer.flush(),  # no zlib header
    "identity": lambda body: body,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bodies_of_every_content_encoding(client, images, encoding):
    bodies = {
        JSON: json.dumps({"image": images[0].tolist()}).encode(),
        RAW: images[0].tobytes(),
        "image/png": encode(images[0]),
        FORM: part("image", encode(images[0])) + b"--b--",
    }
    for content_type, body in bodies.items():
        answer = predict(client, ENCODINGS[encoding](body), content_type, **{"Content-Encoding": encoding})
        assert digits(answer) == [7], content_type


def test_an_unpacked_body_is_complete(client):
    """With a body of this size, zlib still holds bytes back after the first piece of 65,536 bytes."""
    body = ENCODINGS["Deflate"](json.dumps({"image": [0] * 783 + [255]}).encode().ljust(65_560))
    assert pixels(client, body, query="&preprocess=none", **{"Content-Encoding": "deflate"})[0, 27, 27] == 255


@pytest.mark.parametrize(
    ("body", "encoding", "status", "detail"),
    [
        (PACKED, "br", 415, "expected a Content-Encoding of gzip, deflate or identity, found br"),
        (PACKED[:-4], "gzip", 400, "found only its beginning"),
        (b"", "deflate", 400, "found only its beginning"),
        (PACKED + b"more", "gzip", 400, "expected a body in gzip"),
        (b"nonsense", "deflate", 400, "expected a body in deflate"),
        (gzip.compress(bytes(100_001)), "gzip", 413, "at most 100000 bytes"),
    ],
    ids=["another", "truncated", "empty", "followed", "nonsense", "large"],  # fixed ids: gzip's bytes contain the time
)
def test_bad_content_encodings(client, body, encoding, status, detail):
    assert detail in problem(predict(client, body, RAW, **{"Content-Encoding": encoding}), status)


def test_numbers_and_pictures_can_be_mixed_in_one_request(client, images, labels):
    many = [images[0].tolist(), base64.b64encode(enlarged(images[1])).decode(), images[2].reshape(-1).tolist()]
    assert digits(predict(client, json.dumps({"images": many}), JSON)) == labels[:3].tolist()


def test_the_response(client, images):
    answer = predict(client, images[:1].tobytes(), RAW)
    (prediction,) = answer.json["predictions"]
    assert list(prediction) == ["digit", "confidence", "doubtful", "probabilities"]
    assert len(prediction["probabilities"]) == 10
    assert prediction["probabilities"] == [round(probability, 6) for probability in prediction["probabilities"]]
    assert sum(prediction["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert prediction["confidence"] == max(prediction["probabilities"]) == prediction["probabilities"][7]
    assert answer.json["model"] == {"name": "Model_3", "version": read(RELEASE).version}
    assert answer.content_type == JSON


def test_preprocess_none_does_not_change_the_pixels(client, images):
    for sent in (255 - images[0], np.zeros((28, 28), np.uint8)):
        for content, content_type in ((sent.tobytes(), RAW), (encode(sent), "image/png")):
            assert np.array_equal(pixels(client, content, content_type, "&preprocess=none"), [sent])


def test_auto_changes_only_images_not_in_mnist_form(client, images):
    sent = images[:3].copy()
    sent[1] = 255 - sent[1]
    found = pixels(client, sent.tobytes(), RAW)
    assert np.array_equal(found[[0, 2]], images[[0, 2]])
    assert np.abs(found[1] - images[1].astype(int)).mean() < 12
    assert not np.array_equal(pixels(client, images[:3].tobytes(), RAW, "&preprocess=mnist"), images[:3])


ROW, GOOD, END = [0] * 28, part("a", SEVEN), b"--b--"
BAD_REQUESTS = [  # content type, body, status, part of the detail
    (JSON, "", 400, "expected JSON"),
    (JSON, "{}", 400, "found neither"),
    (JSON, '{"image": [], "images": []}', 400, "found both"),
    (JSON, '{"picture": []}', 400, "unknown field `picture`"),
    (JSON, '{"image": [true]}', 400, "Expected `int | float | array`, got `bool` - at `$.image[0]`"),
    (JSON, '{"image": [1e999]}', 400, "out of range"),
    (JSON, json.dumps({"image": [-0.5, *[0.5] * 783]}), 400, "numbers from 0 to 255, or from 0 to 1, found -0.5"),
    (JSON, json.dumps({"images": [[256] * 784]}), 400, "image 1 of 1: expected numbers from 0 to 255, or from 0 to 1"),
    (JSON, json.dumps({"image": [10**400, *[0] * 783]}), 400, "image 1 of 1: int too large"),
    (JSON, b'{"image": "\xff"}', 400, "utf-8"),
    (JSON, '{"image": ' + "[" * 20_000 + "]" * 20_000 + "}", 400, "got `array`"),
    (JSON, '{"images": []}', 422, "expected at least one image, found none"),
    (JSON, '{"image": []}', 422, "image 1 of 1: expected 28 rows of 28 numbers or 784 numbers, found 0 numbers"),
    (JSON, json.dumps({"image": [ROW] * 27}), 422, "28 rows of 28 numbers or 784 numbers, found 27×28 numbers"),
    (JSON, json.dumps({"image": [ROW] * 27 + [[0]]}), 422, "found rows of different lengths"),
    (JSON, json.dumps({"images": [[ROW] * 28, [ROW]]}), 422, "image 2 of 2: expected 28 rows"),
    (JSON, json.dumps({"image": [ROW] * 28}), 422, "image 1 of 1: expected a picture of a digit, found no ink"),
    (JSON, '{"image": "!"}', 422, "image 1 of 1: expected base64"),
    (JSON, '{"image": "data:text/html,x"}', 422, "expected base64 or a data URL"),
    (JSON, '{"image": "aGVsbG8="}', 422, "image 1 of 1: expected a PNG"),
    (RAW, bytes(785), 422, "N × 784 bytes, one (uint8) per pixel, found 785 bytes"),
    (RAW, b"", 422, "expected at least one image, found none"),
    (RAW, bytes(784 * 6), 413, "expected at most 5 images, found 6"),
    (RAW, bytes(100_001), 413, "at most 100000 bytes"),
    ("image/png", b"", 422, "image 1 of 1: expected a PNG"),
    ("image/png", SEVEN[:200], 422, "image 1 of 1: expected a whole PNG"),
    ("image/png", encode(np.zeros((28, 28), np.uint8), "BMP"), 422, "found BMP"),
    ("text/plain", b"x", 415, "expected a Content-Type of application/json, application/octet-stream, multipart/form-"),
    ("application/x-www-form-urlencoded", b"%PDF-1.7", 415, "found application/x-www-form-urlencoded with PDF"),
    ("", b"<svg/>", 415, "found none with SVG"),
    (FORM, GOOD + part("file", b"", 'filename="7.png"') + GOOD + END, 422, "image 2 of 3: "),
    (FORM, GOOD * 6 + END, 413, "expected at most 5 images, found 6"),
    (FORM, bytes(100_001), 413, "at most 100000 bytes"),
    (FORM, part("image", b"7") + part("image", b"aGVsbG8=") + END, 400, "as curl -F image=@7.png sends it, found none"),
    ("multipart/form-data", END, 400, "expected the boundary"),
    (FORM, GOOD, 400, "found a malformed one"),
    (FORM, GOOD.replace(b'Disposition: form-data; name="a"', b"Type: image/png") + END, 400, "found a malformed one"),
]


@pytest.mark.parametrize(("content_type", "body", "status", "detail"), BAD_REQUESTS, ids=range(len(BAD_REQUESTS)))
def test_bad_requests(client, content_type, body, status, detail):
    assert detail in problem(predict(client, body, content_type), status)


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_of_more_pixels_than_configured_is_refused(images, format):
    client = create_app(Config(max_pixels=280 * 280)).test_client()
    assert digits(predict(client, encode(np.kron(images[0], np.ones((10, 10), np.uint8)), format), "image/png")) == [7]
    large = encode(np.zeros((281, 280), np.uint8), format)
    detail = problem(predict(client, large, "image/png"), 422)
    assert detail == "image 1 of 1: expected at most 78,400 pixels, found 280×281"


@pytest.fixture(scope="module")
def shades():
    """Return a function that classifies uniformly grey images. An image is doubtful if its grey level is above 100."""
    client = create_app(Config(), make_release(threshold=100)).test_client()

    def shades(greys, query=""):
        content = np.repeat(np.array(greys, np.uint8), 784).tobytes()
        return predict(client, content, RAW, f"?preprocess=none{query}")

    return shades


def test_an_image_is_doubtful_above_the_threshold_in_the_manifest_and_refused_on_request(shades):
    found = [prediction["doubtful"] for prediction in shades([0, 100, 101, 255, 7]).json["predictions"]]
    assert found == [False, False, True, True, False]
    detail = problem(shades([0, 7, 101, 255], "&refuse=doubtful"), 422)
    assert detail == "image 3 of 4: expected a digit, found a doubtful image"
    assert digits(shades([0, 100], "&refuse=doubtful")) == [0, 0]


def test_the_shipped_model_doubts_turned_digits_and_few_upright_ones(images):
    client = create_app().test_client()
    shares = []
    for sent in (images[:500], np.rot90(images[:500], axes=(1, 2))):
        answer = predict(client, sent.tobytes(), RAW, "?preprocess=none")
        shares.append(np.mean([prediction["doubtful"] for prediction in answer.json["predictions"]]))
    assert shares[0] < 0.05
    assert shares[1] > 0.7


@pytest.mark.parametrize("path", ["/predict", "/v2/models/digits/infer"])
def test_more_numbers_than_the_images_have_are_refused_before_they_are_parsed(client, path):
    answer = client.post(path, data=b'{"images":[' + b"0," * 5_000, content_type=JSON)  # malformed JSON, never parsed
    assert answer.status_code == 413
    assert "expected at most 4,920 numbers, enough for 5 images, found more" in answer.text


def test_query_parameters(client):
    for query, detail in (
        ("preprocess=magic", "preprocess: expected auto or none or mnist, found 'magic'"),
        ("pixels=1", "pixels: expected false or true, found '1'"),
        ("refuse=", "refuse: expected doubtful, found ''"),
    ):
        assert problem(predict(client, SEVEN, "image/png", f"?{query}"), 400) == detail


def test_paths_and_methods(client):
    assert client.get("/v2/models//ready").status_code == 404
    assert client.post("/predict/").status_code == 404
    expected = "expected a path and a method that /openapi.json lists, found GET"
    assert problem(client.get("/nowhere"), 404) == f"{expected} /nowhere"
    answer = client.get("/predict")
    assert problem(answer, 405) == f"{expected} /predict"
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


def test_an_internal_error_is_logged_and_reveals_nothing_to_the_client(images, monkeypatch, capfd):
    app = create_app()
    monkeypatch.setattr("serve.routes.predict.read_images", lambda *_: 1 / 0)
    answer = predict(app.test_client(), images[:1].tobytes(), RAW)
    detail = problem(answer, 500)
    assert "ZeroDivisionError" not in answer.text
    assert "request id" in detail
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    reason, line = [line for line in lines if line.get("request_id") == answer.headers["X-Request-ID"]]
    assert "ZeroDivisionError" in reason["traceback"]
    assert (line["status"], line["level"], reason["level"]) == (500, "error", "error")


def test_other_origins_are_allowed_only_if_configured(client, images):
    origin = {"Origin": "https://pages.example"}
    assert "Access-Control-Allow-Origin" not in client.get("/healthz", headers=origin).headers
    allowing = create_app(Config(cors_origins="https://other.example https://pages.example")).test_client()
    preflight = allowing.options("/predict", headers={**origin, "Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://pages.example"
    assert {"Authorization", "Content-Type"} <= set(preflight.headers["Access-Control-Allow-Headers"].split(", "))
    assert allowing.get("/nowhere", headers=origin).headers["Access-Control-Allow-Origin"] == "https://pages.example"
    for other in ("https://evil.example", "https://pages.example.evil.example", "http://pages.example", "https://page"):
        answer = allowing.get("/healthz", headers={"Origin": other})
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Origin" in answer.headers["Vary"]
    everyone = create_app(Config(cors_origins="*")).test_client()
    assert everyone.get("/healthz", headers=origin).headers["Access-Control-Allow-Origin"] == "https://pages.example"


def test_a_model_that_fails_is_not_ready_but_the_service_is_alive(monkeypatch):
    client = create_app().test_client()
    monkeypatch.setattr("onnxruntime.InferenceSession.run", lambda *_: 1 / 0)
    for path in ("/readyz", "/v2/health/ready", "/v2/models/digits/ready"):
        assert client.get(path).status_code == 500
    for path in ("/healthz", "/v2/health/live"):
        assert client.get(path).status_code == 200


def test_one_bad_image_of_many_fails_the_request_and_is_named(images):
    blank_last = images[:250].tobytes() + bytes(784)
    assert "image 251 of 251: " in problem(predict(create_app().test_client(), blank_last, RAW), 422)
