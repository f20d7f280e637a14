"""POST /predict through Flask's test client: every input format and every error."""

import base64
import io
import json

import numpy as np
import pytest

from serve.app import create_app
from serve.config import Config
from serve.release import read
from tests.serve.hostile import encode
from tests.serve.releases import make_release
from train.paths import RELEASE

JSON = "application/json"


def enlarged(image):
    """Return the digit as a PNG of 280×280, black on white."""
    return encode(255 - np.kron(image, np.ones((10, 10), np.uint8)))


def predict(client, content, content_type, query="", **headers):
    return client.post(f"/predict{query}", data=content, content_type=content_type, headers=headers)


def digits(answer):
    assert answer.status_code == 200, answer.text
    return [prediction["digit"] for prediction in answer.json["predictions"]]


def problem(answer, status):
    """Check that the response is an RFC 9457 problem, and return its detail."""
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    assert (answer.json["status"], answer.json["type"]) == (status, "about:blank")
    return answer.json["detail"]


def files(*contents, name="image"):
    return {name: [(io.BytesIO(content), f"{i}.png") for i, content in enumerate(contents)]}


def data_url(image, format):
    return f"data:image/{format.lower()};base64,{base64.b64encode(encode(image, format)).decode()}"


FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
FORMS = {
    "rows": lambda image: {"image": image.tolist()},
    "numbers": lambda image: {"image": image.reshape(-1).tolist()},
    "fractions": lambda image: {"image": (image * 0.999).tolist()},
    "base64": lambda image: {"image": base64.b64encode(encode(image)).decode()},
    "many": lambda image: {"images": [image.tolist()]},
    **{f"data URL of {format}": lambda image, format=format: {"image": data_url(image, format)} for format in FORMATS},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_json_format(client, images, labels, form):
    found = [digits(predict(client, json.dumps(FORMS[form](image)), JSON)) for image in images[:5]]
    assert found == [[label] for label in labels[:5]]


@pytest.mark.parametrize("format", FORMATS)
def test_an_encoded_picture_as_the_body(client, images, labels, format):
    found = [digits(predict(client, encode(image, format), f"image/{format.lower()}")) for image in images[:5]]
    assert found == [[label] for label in labels[:5]]


def test_several_files_are_predicted_in_order(client, images, labels):
    body = files(*(enlarged(image) for image in images[:5]))
    assert digits(predict(client, body, "multipart/form-data")) == labels[:5].tolist()


def test_raw_pixels(client, images, labels):
    assert digits(predict(client, images[:5].tobytes(), "application/octet-stream")) == labels[:5].tolist()


def test_numbers_and_pictures_can_be_mixed_in_one_request(client, images, labels):
    many = [images[0].tolist(), base64.b64encode(enlarged(images[1])).decode(), images[2].reshape(-1).tolist()]
    assert digits(predict(client, json.dumps({"images": many}), JSON)) == labels[:3].tolist()


def test_the_response(client, images):
    answer = predict(client, images[:1].tobytes(), "application/octet-stream")
    (prediction,) = answer.json["predictions"]
    assert list(prediction) == ["digit", "confidence", "doubtful", "probabilities"]
    assert len(prediction["probabilities"]) == 10
    assert sum(prediction["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert prediction["confidence"] == max(prediction["probabilities"]) == prediction["probabilities"][7]
    assert answer.json["model"] == {"name": "Model_3", "version": read(RELEASE).version}
    assert answer.content_type == JSON


def test_pixels_returns_the_model_s_input(client, images):
    answer = predict(client, enlarged(images[0]), "image/png", "?pixels=true")
    pixels = np.array(answer.json["predictions"][0]["pixels"])
    assert pixels.shape == (28, 28)
    assert np.abs(pixels - images[0].astype(int)).mean() < 12  # white ink on black, in the same place


def test_preprocess_none_does_not_change_the_pixels(client, images):
    for pixels in (255 - images[0], np.zeros((28, 28), np.uint8)):
        for content, content_type in ((pixels.tobytes(), "application/octet-stream"), (encode(pixels), "image/png")):
            answer = predict(client, content, content_type, "?preprocess=none&pixels=true")
            assert np.array_equal(answer.json["predictions"][0]["pixels"], pixels)


def test_fractions_are_rounded(client):
    answer = predict(client, json.dumps({"image": [6.6] * 784}), JSON, "?preprocess=none&pixels=true")
    assert answer.json["predictions"][0]["pixels"] == [[7] * 28] * 28


def test_auto_changes_only_images_not_in_mnist_form(client, images):
    sent = images[:3].copy()
    sent[1] = 255 - sent[1]
    answer = predict(client, sent.tobytes(), "application/octet-stream", "?pixels=true")
    found = np.array([prediction["pixels"] for prediction in answer.json["predictions"]])
    assert np.array_equal(found[[0, 2]], images[[0, 2]])
    assert np.abs(found[1] - images[1].astype(int)).mean() < 12
    every = predict(client, images[:3].tobytes(), "application/octet-stream", "?preprocess=mnist&pixels=true")
    assert not np.array_equal([prediction["pixels"] for prediction in every.json["predictions"]], images[:3])


ROW = [0] * 28


@pytest.mark.parametrize(
    ("status", "body", "detail"),
    [
        (400, "", "expected JSON"),
        (400, "nonsense", "JSON is malformed"),
        (400, "[1]", "Expected `object`, got `array`"),
        (400, "{}", "found neither"),
        (400, '{"image": [], "images": []}', "found both"),
        (400, '{"picture": []}', "unknown field `picture`"),
        (400, '{"image": 7}', "Expected `str | array`, got `int` - at `$.image`"),
        (400, '{"image": null}', "Expected `str | array`, got `null`"),
        (400, '{"images": {}}', "Expected `array`, got `object`"),
        (400, '{"image": ["a"]}', "Expected `int | float | array`, got `str` - at `$.image[0]`"),
        (400, '{"image": [true]}', "got `bool`"),
        (400, '{"image": [NaN]}', "malformed"),
        (400, '{"image": [1e999]}', "out of range"),
        (400, '{"image": [-1]}', ">= 0"),
        (400, '{"image": [256]}', "<= 255"),
        (400, b'{"image": "\xff"}', "utf-8"),
        pytest.param(400, '{"image": ' + "[" * 20_000 + "]" * 20_000 + "}", "got `array`", id="deep"),
        (422, '{"images": []}', "expected at least one image, found none"),
        (422, '{"image": []}', "image 1 of 1: expected 28 rows of 28 numbers or 784 numbers, found 0 numbers"),
        (422, '{"image": [1, 2]}', "or 784 numbers, found 2 numbers"),
        (422, json.dumps({"image": [28] * 28}), "found 28 numbers"),
        (422, json.dumps({"image": [[0]] * 784}), "found 784 rows of 1"),
        (422, json.dumps({"image": [ROW] * 27}), "expected 28 rows of 28 numbers or 784 numbers, found 27 rows of 28"),
        (422, json.dumps({"image": [ROW] * 27 + [[0]]}), "found 28 rows of 1 or rows of 28"),
        (422, json.dumps({"image": [*ROW * 27, ROW]}), "found 757 numbers or rows of 28"),
        (422, json.dumps({"images": [[ROW] * 28, [ROW]]}), "image 2 of 2: expected 28 rows"),
        (422, '{"image": "!"}', "image 1 of 1: expected base64"),
        (422, '{"image": "data:text/html,x"}', "expected base64 or a data URL"),
        (422, '{"image": "aGVsbG8="}', "image 1 of 1: "),
        (422, json.dumps({"image": [ROW] * 28}), "image 1 of 1: "),  # no ink
    ],
)
def test_bad_json(client, status, body, detail):
    assert detail in problem(predict(client, body, JSON), status)


def test_bad_raw_pixels(client, images):
    raw = "application/octet-stream"
    assert "N × 784 bytes, one per pixel, found 785 bytes" in problem(predict(client, bytes(785), raw), 422)
    assert "expected at least one image, found none" in problem(predict(client, b"", raw), 422)
    assert "expected at most 5 images, found 6" in problem(predict(client, images[:6].tobytes(), raw), 413)
    assert "image 2 of 2: " in problem(predict(client, images[:1].tobytes() + bytes(784), raw), 422)


def test_bad_pictures(client, images):
    picture = enlarged(images[0])
    for content in (b"", b"no picture", picture[: len(picture) // 2]):
        assert problem(predict(client, content, "image/png"), 422).startswith("image 1 of 1: ")
    blank = encode(np.full((50, 50), 255, np.uint8))
    assert "ink" in problem(predict(client, blank, "image/png"), 422)
    bomb = encode(np.zeros((6000, 6000), np.uint8))
    assert len(bomb) < 100_000
    assert "image 1 of 1: " in problem(predict(client, bomb, "image/png"), 422)


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_of_more_pixels_than_configured_is_refused(images, format):
    client = create_app(Config(max_pixels=280 * 280)).test_client()
    assert digits(predict(client, encode(np.kron(images[0], np.ones((10, 10), np.uint8)), format), "image/png")) == [7]
    large = encode(np.zeros((281, 280), np.uint8), format)
    detail = problem(predict(client, large, "image/png"), 422)
    assert detail == "image 1 of 1: expected at most 78,400 pixels, found 280×281"


def predict_shades(release, shades, query=""):
    """Predict one image of uniform grey per shade. The graph of `make_release` gives the shade as the doubt."""
    raw = b"".join(bytes([shade]) * 784 for shade in shades)
    client = create_app(Config(), release).test_client()
    return predict(client, raw, "application/octet-stream", f"?preprocess=none{query}")


def test_an_image_is_doubtful_above_the_threshold_in_the_manifest():
    answer = predict_shades(make_release(threshold=100), [0, 100, 101, 255, 7])
    found = [prediction["doubtful"] for prediction in answer.json["predictions"]]
    assert found == [False, False, True, True, False]


def test_doubtful_images_are_refused_on_request():
    doubting = make_release(threshold=100)
    detail = problem(predict_shades(doubting, [0, 7, 101, 255], "&refuse=doubtful"), 422)
    assert detail == "image 3 of 4: expected a digit, found a doubtful image"
    assert "image 1 of 1: " in problem(predict_shades(doubting, [200], "&refuse=doubtful"), 422)
    assert digits(predict_shades(doubting, [0, 100], "&refuse=doubtful")) == [0, 0]


def test_the_shipped_model_doubts_turned_digits_and_few_upright_ones(images):
    client = create_app().test_client()
    shares = []
    for sent in (images[:500], np.rot90(images[:500], axes=(1, 2))):
        answer = predict(client, sent.tobytes(), "application/octet-stream", "?preprocess=none")
        shares.append(np.mean([prediction["doubtful"] for prediction in answer.json["predictions"]]))
    assert shares[0] < 0.05
    assert shares[1] > 0.7


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # werkzeug leaves refused parts to the GC
def test_bad_files(client, images):
    good, form = enlarged(images[0]), "multipart/form-data"
    assert "image 2 of 3: " in problem(predict(client, files(good, b"no picture", good), form), 422)
    assert "at most 100000 bytes and 5 parts" in problem(predict(client, files(*[good] * 6), form), 413)
    assert "found the file field 'picture'" in problem(predict(client, files(good, name="picture"), form), 400)
    assert "found the text field 'image'" in problem(predict(client, {"image": "7"}, form), 400)
    assert "expected at least one image, found none" in problem(predict(client, {}, form), 422)
    assert problem(client.post("/predict", data=b"x", content_type=f"{form}; boundary=b"), 422)
    assert "expected the boundary" in problem(client.post("/predict", data=b"x", content_type=form), 400)
    text = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + bytes(600_000)
    large = predict(create_app().test_client(), text, f"{form}; boundary=b")
    assert "parts with at most 500000 bytes of text each" in problem(large, 413)


def test_one_bad_image_of_many_fails_the_request_and_is_named(client, images):
    many = [images[0].tolist(), images[1].tolist(), "bm8gcGljdHVyZQ=="]
    assert problem(predict(client, json.dumps({"images": many}), JSON), 422).startswith("image 3 of 3: ")


@pytest.mark.parametrize("content_type", ["text/plain", "image/svg+xml", "application/x-www-form-urlencoded", ""])
def test_an_unsupported_content_type(client, content_type):
    detail = problem(predict(client, b"x", content_type), 415)
    assert detail.startswith("expected a Content-Type of application/json")
    assert detail.endswith(f"found {content_type or 'none'}")


def test_an_encoded_body(client):
    assert "found gzip" in problem(predict(client, b"x", JSON, **{"Content-Encoding": "gzip"}), 415)


def test_too_large_a_body(client):
    for content_type in (JSON, "image/png", "application/octet-stream", "multipart/form-data; boundary=b"):
        assert "at most 100000 bytes" in problem(predict(client, bytes(100_001), content_type), 413)


@pytest.mark.parametrize("path", ["/predict", "/v2/models/digits/infer"])
def test_more_numbers_than_the_images_have_are_refused_before_they_are_parsed(client, path):
    answer = client.post(path, data=b'{"images":[' + b"0," * 5_000, content_type=JSON)  # malformed, if it were parsed
    assert answer.status_code == 413
    assert "expected at most 4,920 numbers in 5 image(s), found more" in answer.text


def test_query_parameters(client, images):
    raw = images[:1].tobytes()
    detail = problem(predict(client, raw, "application/octet-stream", "?preprocess=magic"), 400)
    assert detail == "preprocess: expected auto or none or mnist, found 'magic'"
    assert "pixels: expected false or true" in problem(
        predict(client, raw, "application/octet-stream", "?pixels=1"), 400
    )
    for value in ("true", ""):
        detail = problem(predict(client, raw, "application/octet-stream", f"?refuse={value}"), 400)
        assert detail == f"refuse: expected doubtful, found {value!r}"


def test_paths_and_methods(client):
    assert client.get("/v2/models//ready").status_code == 404
    assert problem(client.get("/nowhere"), 404) == "expected a path that /openapi.json lists, found /nowhere"
    answer = client.get("/predict")
    assert problem(answer, 405) == "expected OPTIONS or POST for /predict, found GET"
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


def test_an_internal_error_reveals_nothing_to_the_client(images, monkeypatch, caplog):
    app = create_app()
    monkeypatch.setattr("serve.predict.read_images", lambda *_: 1 / 0)
    answer = predict(app.test_client(), images[:1].tobytes(), "application/octet-stream")
    detail = problem(answer, 500)
    assert "ZeroDivisionError" not in answer.text
    assert "request id" in detail
    (record,) = [record for record in caplog.records if "ZeroDivisionError" in str(record.exc_info)]
    assert record.fields["request_id"] == answer.headers["X-Request-ID"]


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
    ready = ("/readyz", "/v2/health/ready", "/v2/models/digits/ready")
    for path in ready:
        assert client.get(path).status_code == 200
    monkeypatch.setattr("onnxruntime.InferenceSession.run", lambda *_: 1 / 0)
    for path in ready:
        assert client.get(path).status_code == 500
    for path in ("/healthz", "/v2/health/live"):
        assert client.get(path).status_code == 200


def test_base64_may_be_wrapped_in_lines(client, images):
    wrapped = base64.encodebytes(enlarged(images[0])).decode()
    assert digits(predict(client, json.dumps({"image": wrapped}), JSON)) == [7]


def test_an_image_without_ink_is_named_in_a_large_batch(images):
    client = create_app().test_client()
    content = np.concatenate([images[:250], np.zeros((1, 28, 28), np.uint8)])
    detail = problem(predict(client, content.tobytes(), "application/octet-stream"), 422)
    assert detail.startswith("image 251 of 251: ")


@pytest.mark.parametrize("path", ["//predict", "///predict", "/predict/", "//healthz"])
def test_a_path_with_extra_slashes_is_not_found(client, images, path):
    found = client.post("/predict", data=images[:1].tobytes(), environ_overrides={"PATH_INFO": path})
    assert found.status_code == 404


@pytest.mark.parametrize("format", ["BMP", "TIFF"])
def test_other_picture_formats_are_refused(client, images, format):
    picture = encode(images[0], format)
    assert "expected a PNG, JPEG, WebP or GIF picture, found" in problem(predict(client, picture, "image/png"), 422)
    problem(predict(client, picture, f"image/{format.lower()}"), 415)
