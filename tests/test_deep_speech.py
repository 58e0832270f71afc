"""Speech Commands against NumPy's FFT, miniatures, damaged clips, the real subset; Table 5."""

import hashlib
import io
import itertools
import json
import tarfile
import types
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from deep.data.load import load_examples
from deep.data.speech import FOLDS, SPEECH_SETS, load_speech, read_wav, spectrogram
from deep.models.lenet import LeNet
from deep.run_folder import read_lines
from deep.tables.speech import SpeechConfig
from deep.train import main as train_main
from theory.check_approx import Config as CheckConfig
from theory.check_approx import measure
from theory.errors import InputError

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "speech_commands"
ARCHIVE = "speech_commands_v0.02.tar.gz"


def wav(samples, rate=16_000, channels=1, width=2):
    """A file as the standard library writes it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as clip:
        clip.setnchannels(channels)
        clip.setsampwidth(width)
        clip.setframerate(rate)
        clip.writeframes(np.asarray(samples, "<i2" if width == 2 else "u1").tobytes())
    return file.getvalue()


def noise(seed, count=16_000):
    return np.random.default_rng(seed).integers(-3000, 3000, count).astype(np.int16)


def clips(words=("no", "yes"), speakers=10):
    """Name -> samples; every speaker says every word, and some speak for less than a second."""
    pairs = [(word, speaker) for word in words for speaker in range(speakers)]
    return {
        f"{word}/{speaker:02x}ab_nohash_0.wav": noise(seed, 16_000 - 900 * (speaker % 3))
        for seed, (word, speaker) in enumerate(pairs)
    }


def write_folder(folder, audio):
    for name, samples in audio.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(wav(samples))
    return folder


def write_archive(folder, audio, validation, testing, **others):
    """The published form: word folders, lists at the top, long noises that are no clips."""
    files = {f"./{name}": wav(samples) for name, samples in audio.items()}
    files["./_background_noise_/hum.wav"] = wav(noise(99, 50_000))
    files["./no/._hidden.wav"] = files["./stray.wav"] = b"not sound"
    files["./validation_list.txt"] = "\n".join(validation).encode()
    files["./testing_list.txt"] = "\n".join(testing).encode() + b"\n"
    files |= others
    with tarfile.open(folder / ARCHIVE, "w:gz") as tar:
        for name, content in files.items():
            if content is not None:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder


def by_numpy(samples):
    """The front end written out frame by frame in float64."""
    padded = np.zeros(16_000)
    padded[: len(samples)] = samples / 32768
    mirrored = np.concatenate([padded[160:0:-1], padded, padded[-2:-162:-1]])
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(320) / 320)
    frames = [mirrored[160 * t : 160 * t + 320] * window for t in range(101)]
    picture = np.log1p(np.abs(np.fft.rfft(frames, axis=1))).T[1:]
    return (picture - picture.mean()) / picture.std()


def refusal(name, folder, **options):
    """The one line with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        load_speech(name, folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the front end ------------------------------------------------------------------------------


def test_spectrogram_is_numpys_fft_of_each_windowed_frame():
    samples = np.stack([noise(0), noise(1)])
    found = spectrogram(samples)
    assert found.shape == (2, 1, 160, 101)
    for x, clip in zip(found, samples, strict=True):
        np.testing.assert_allclose(x[0].numpy(), by_numpy(clip), atol=2e-5)


@pytest.mark.parametrize("hertz", [50, 1000, 3150, 7950, 8000])
def test_a_tone_peaks_in_the_row_of_its_frequency(hertz):
    tone = 8000 * np.cos(2 * np.pi * hertz * np.arange(16_000) / 16_000)
    (x,) = spectrogram(tone.astype(np.int16)[None])
    assert (x[0, :, 1:-1].argmax(0) == hertz / 50 - 1).all()  # the outer frames see mirrored sound


def test_a_click_is_seen_in_the_frame_of_its_time():
    samples = np.zeros((1, 16_000), np.int16)
    samples[0, 160 * 37] = 20_000  # 370 ms
    assert spectrogram(samples)[0, 0].sum(0).argmax() == 37


def test_silence_gives_zeros_and_not_nan():
    assert (spectrogram(np.zeros((1, 16_000), np.int16)) == 0).all()


# --- WAV files ----------------------------------------------------------------------------------


def test_wav_gives_back_the_samples():
    samples = noise(3)
    np.testing.assert_array_equal(read_wav(wav(samples), Path("a.wav")), samples)
    extreme = np.array([-32768, 32767, 0, -1], np.int16)
    np.testing.assert_array_equal(read_wav(wav(extreme), Path("a.wav")), extreme)


WHOLE = wav(noise(4))
FAULTS = {
    "wrong rate": (wav(noise(4), rate=8000), "has 8000 Hz, 16 bit and 1 channel, not 16000 Hz"),
    "stereo": (wav(noise(4), channels=2), "16 bit and 2 channels"),
    "8 bit": (wav(np.zeros(16_000), width=1), "8 bit and 1 channel"),
    "empty": (b"", "is empty"),
    "no samples": (wav([]), "has 0 samples"),
    "too long": (wav(noise(4, 16_001)), "has 16001 samples"),
    "cut in its samples": (WHOLE[:20_000], "holds 9978 of the 16000 samples"),
    "cut by a byte": (WHOLE[:-1], "holds 15999 of the 16000 samples"),
    "cut in its header": (WHOLE[:30], "cannot be read"),
    "cut before its samples": (WHOLE[:36], "cannot be read"),
    "not a WAV": (b"ID3 and so on" * 100, "cannot be read (file does not start with RIFF id)"),
    "not PCM": (WHOLE[:20] + b"\x03" + WHOLE[21:], "cannot be read (unknown format: 3)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_spoilt_clip_is_refused_by_name_in_a_folder_and_in_an_archive(fault, tmp_path):
    content, message = FAULTS[fault]
    audio = clips()
    (tmp_path / "folder").mkdir()
    spoilt = write_folder(tmp_path / "folder", audio) / "yes" / "03ab_nohash_0.wav"
    spoilt.write_bytes(content)
    found = refusal("speech-small", tmp_path / "folder")
    assert found.startswith(str(spoilt))
    assert message in found
    names = list(audio)
    write_archive(tmp_path, audio, names[:1], names[1:2], **{"./yes/03ab_nohash_0.wav": content})
    found = refusal("speech-commands", tmp_path)
    assert f"{ARCHIVE}/yes/03ab_nohash_0.wav" in found
    assert message in found


# --- a folder of words, split by speaker --------------------------------------------------------


def assert_holds(x, y, data, audio):
    """These examples are exactly these clips, in the order of their names."""
    assert x.shape == (len(audio), 1, 160, 101)
    assert x.dtype == torch.float32
    assert [data.words[label] for label in y] == [name.split("/")[0] for name in sorted(audio)]
    for found, name in zip(x, sorted(audio), strict=True):
        np.testing.assert_allclose(found[0].numpy(), by_numpy(audio[name]), atol=5e-5)


def names_of(x, audio):
    """Which clip each example is, found by the front end written out."""
    pictures = np.stack([by_numpy(samples) for samples in audio.values()])
    distance = [np.abs(pictures - found[0].numpy()).max((1, 2)) for found in x]
    assert all(row.min() < 1e-4 for row in distance)
    return [list(audio)[row.argmin()] for row in distance]


def speakers_of(names):
    return {Path(name).name.split("_nohash_")[0] for name in names}


@pytest.mark.parametrize("place", [".", "speech_commands"])
def test_folds_share_no_speaker_and_together_test_every_clip_once(place, tmp_path):
    audio = clips(speakers=11)
    folder = write_folder(tmp_path / place, audio)
    (folder / "_background_noise_").mkdir()
    (folder / "_background_noise_" / "hum.wav").write_bytes(wav(noise(99, 50_000)))
    (folder / "LICENSE").write_text("as published")
    tested = []
    for fold in range(FOLDS):
        data = load_speech("speech-small", tmp_path, fold)
        train, test = names_of(data.x_train, audio), names_of(data.x_test, audio)
        assert_holds(data.x_train, data.y_train, data, {name: audio[name] for name in train})
        assert_holds(data.x_test, data.y_test, data, {name: audio[name] for name in test})
        assert not speakers_of(train) & speakers_of(test)
        assert sorted(train + test) == sorted(audio)
        assert len(data.x_validation) == len(data.y_validation) == 0
        tested += test
    assert sorted(tested) == sorted(audio)
    assert (data.num_classes, data.words) == (2, ("no", "yes"))
    files = [folder / name for name in sorted(audio)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert data.source.endswith(digest)
    assert torch.equal(load_examples("speech-small", str(tmp_path)).x_test[:, :, :9, :9],
                       load_speech("speech-small", folder).x_test[:, :, :9, :9])  # fmt: skip


def test_no_test_clip_enters_training(tmp_path):
    """Other test clips: the training part stays what it was, bit for bit, and the other way."""
    audio = clips()
    before = load_speech("speech-small", write_folder(tmp_path, audio))
    test = names_of(before.x_test, audio)
    for which in (test, sorted(audio.keys() - test)):
        changed = {name: audio[name][::-1] if name in which else audio[name] for name in audio}
        after = load_speech("speech-small", write_folder(tmp_path, changed))
        assert torch.equal(before.x_train, after.x_train) == (which is test)
        assert torch.equal(before.x_test, after.x_test) == (which is not test)


def test_clip_that_names_no_speaker_is_refused(tmp_path):
    write_folder(tmp_path, {**clips(), "yes/me.wav": noise(7)})
    message = refusal("speech-small", tmp_path)
    assert "yes/me.wav does not name its speaker" in message


def test_too_few_speakers_words_or_clips_are_refused(tmp_path):
    write_folder(tmp_path / "a", clips(speakers=4))
    assert "2 words by 4 speakers" in refusal("speech-small", tmp_path / "a")
    write_folder(tmp_path / "b", clips(words=("yes",)))
    assert "1 words by 10 speakers" in refusal("speech-small", tmp_path / "b")
    folder = write_folder(tmp_path / "c", clips(speakers=6))
    for speaker in (1, 4):
        (folder / "yes" / f"{speaker:02x}ab_nohash_0.wav").unlink()
    assert "4 clips of the rarest" in refusal("speech-small", folder)


# --- the published archive ----------------------------------------------------------------------


@pytest.fixture
def archived():
    audio = clips(("bed", "cat", "dog"), speakers=4)
    names = list(audio)
    return audio, names[2:9:3], names[1:8:3]


@pytest.mark.parametrize("place", [".", "speech_commands"])
def test_archive_is_split_by_its_lists(place, tmp_path, archived):
    audio, validation, testing = archived
    (tmp_path / place).mkdir(exist_ok=True)
    write_archive(tmp_path / place, audio, validation, testing)
    data = load_examples("speech-commands", tmp_path)
    part = {name: audio[name] for name in audio.keys() - {*validation, *testing}}
    assert_holds(data.x_train, data.y_train, data, part)
    part = {name: audio[name] for name in validation}
    assert_holds(data.x_validation, data.y_validation, data, part)
    assert_holds(data.x_test, data.y_test, data, {name: audio[name] for name in testing})
    assert data.words == ("bed", "cat", "dog")
    digest = hashlib.sha256((tmp_path / place / ARCHIVE).read_bytes()).hexdigest()
    assert data.source == f"{ARCHIVE}; SHA-256 {digest}"


def test_the_older_archive_goes_by_a_name_of_its_own(tmp_path, archived):
    write_archive(tmp_path, *archived)
    (tmp_path / ARCHIVE).rename(tmp_path / "speech_commands_v0.01.tar.gz")
    assert load_speech("speech-commands-v0.01", tmp_path).num_classes == 3
    assert ARCHIVE in refusal("speech-commands", tmp_path)


def test_archive_without_a_list_or_a_listed_clip_is_refused(tmp_path, archived):
    audio, validation, testing = archived
    write_archive(tmp_path, *archived, **{"./testing_list.txt": None})
    assert "lacks testing_list.txt:" in refusal("speech-commands", tmp_path)
    lost = [*testing, "bed/lost_nohash_0.wav", "bed/lost_nohash_1.wav"]
    write_archive(tmp_path, audio, validation, lost)
    assert "lacks bed/lost_nohash_0.wav and 1 more:" in refusal("speech-commands", tmp_path)
    write_archive(tmp_path, audio, validation, [*testing, validation[0]])
    assert "lists a clip twice" in refusal("speech-commands", tmp_path)
    write_archive(tmp_path, audio, validation, [])
    assert "test part is empty" in refusal("speech-commands", tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_truncated_archive_is_refused(kept, tmp_path, archived):
    path = write_archive(tmp_path, *archived) / ARCHIVE
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert str(path) in refusal("speech-commands", tmp_path)


def test_names_that_lead_out_of_the_archive_write_nothing(tmp_path, archived):
    (tmp_path / "data").mkdir()
    out = {"../../bed/out_nohash_0.wav": wav(noise(8)), "/tmp/no/abs_nohash_0.wav": wav(noise(9))}
    before = set(tmp_path.rglob("*"))
    write_archive(tmp_path / "data", *archived, **out)
    load_speech("speech-commands", tmp_path / "data")
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "data" / ARCHIVE}


# --- requests that name nothing usable ----------------------------------------------------------


@pytest.mark.parametrize("name", ["speech-small", "speech-commands"])
def test_folder_without_the_set_is_refused_with_what_was_looked_for(name, tmp_path):
    wanted = {"speech-small": "<word>/<speaker>_nohash_<k>.wav", "speech-commands": ARCHIVE}
    assert wanted[name] in refusal(name, tmp_path)
    assert "is not a folder" in refusal(name, tmp_path / "nowhere")
    assert "cannot read" in refusal(name, tmp_path / ("x" * 5000))


def test_requests_that_no_folder_could_serve_are_refused(tmp_path):
    message = refusal("speech", tmp_path)
    assert all(name in message for name in SPEECH_SETS)
    assert "--data-dir" in refusal("speech-small", None)
    assert "from 0 to 4" in refusal("speech-small", tmp_path, fold=5)


# --- the real subset ----------------------------------------------------------------------------


@pytest.mark.skipif(
    not REAL_DATA.is_dir(),
    reason="needs the real Speech Commands subset, which is not part of the repository",
)
def test_the_real_subset_is_whole_and_balanced():
    """960 clips, 120 for each of 8 words, 193 speakers, every file's published sum."""
    files = sorted(REAL_DATA.glob("*/*.wav"))
    sums = dict(line.split()[::-1] for line in (REAL_DATA / "SHA256SUMS").read_text().splitlines())
    found = {f"{p.parent.name}/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    assert found == sums
    assert len(speakers_of(map(str, files))) == 193

    folds = [load_speech("speech-small", REAL_DATA.parent, fold) for fold in range(FOLDS)]
    assert folds[0].words == ("down", "go", "left", "no", "right", "stop", "up", "yes")
    assert sum(data.y_test.bincount() for data in folds).tolist() == [120] * 8
    for data in folds:
        assert len(data.x_train) + len(data.x_test) == 960
        assert (data.y_train.bincount() + data.y_test.bincount()).tolist() == [120] * 8
        assert (abs(data.y_test.bincount() - 24) <= 2).all()
        assert data.x_train.isfinite().all()
        std, mean = torch.std_mean(data.x_test.double(), dim=(1, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-6, rtol=0)
        torch.testing.assert_close(std, torch.ones_like(std), atol=1e-5, rtol=0)
    tested = [x.numpy().tobytes() for data in folds for x in data.x_test]
    assert len(set(tested)) == len(tested) == 960


# --- training, checking and Table 5 -------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of 2 words by 10 speakers: 16 clips to train on, 4 to test."""
    return write_folder(tmp_path_factory.mktemp("small"), clips())


def config(folder, **options):
    settings = {"data_dir": folder, "epochs": 3.0, "batch_size": 8, "width": 2, "device": "cpu"}
    return SpeechConfig(**{**settings, **options})


def test_a_job_is_a_plain_loop_of_adam_on_its_fold(small):
    """The same run written out with torch's own Adam and cross-entropy."""
    (job,) = config(small, rows=("LeNet",), methods=("erm",), seeds=8).jobs()[7:]
    record = json.loads(json.dumps(job.run(lambda part: None), allow_nan=False))
    data = load_speech("speech-small", small, fold=2)  # seed 7 tests fold 7 mod 5

    torch.manual_seed(7)
    model = LeNet(num_classes=2, in_channels=1, image_size=(160, 101))
    order = torch.Generator().manual_seed(7)
    optimizer = torch.optim.Adam(model.parameters())
    for lr in (3e-3, 3e-4, 3e-5):
        optimizer.param_groups[0]["lr"] = lr
        for batch in torch.randperm(16, generator=order).split(8):
            optimizer.zero_grad()
            logits = model(data.x_train[batch])
            torch.nn.functional.cross_entropy(logits, data.y_train[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        wrong = (model(data.x_test).argmax(1) != data.y_test).double().mean()
        train_loss = torch.nn.functional.cross_entropy(model(data.x_train), data.y_train)
    (found,) = record["results"]
    assert found.pop("train_loss") == pytest.approx(float(train_loss), rel=1e-4)
    assert found.pop("error") == float(wrong)
    assert found == {"method": "erm", "split": 7, "selection": "last epoch", "epochs": 3.0}
    assert record["data"] == {"source": data.source, "train": 16, "validation": 0, "test": 4}
    assert job.settings["fold"] == 2
    assert job.settings["alpha"] is job.settings["eta"] is None


def test_methods_share_split_and_initial_weights_and_seeds_do_not(small):
    jobs = config(small, rows=("VGG-11",), seeds=2).jobs()
    data = [job.data() for job in jobs]
    weights = [job.training(part)[0].linear.weight for job, part in zip(jobs, data, strict=True)]
    for i, j in itertools.combinations(range(6), 2):
        same_seed = i // 3 == j // 3
        assert torch.equal(weights[i], weights[j]) == same_seed
        assert torch.equal(data[i].x_test, data[j].x_test) == same_seed


@pytest.mark.parametrize("method", ["mixupe-paper", "mixupe-official-v3", "mixupe-exact"])
def test_vgg_jobs_are_json_and_repeat_exactly(method, small):
    (job,) = config(small, rows=("VGG-13",), methods=(method,), seeds=1, epochs=1.0).jobs()
    parts = []
    record = job.run(parts.append)
    assert parts == [0.5, 1.0]
    assert json.dumps(record, allow_nan=False) == json.dumps(job.run(parts.append))
    settings = job.settings
    assert (settings["model"], settings["width"], settings["eta"]) == ("vgg13", 2, 0.001)


def test_validation_picks_an_epoch_beside_the_last(tmp_path, archived):
    """The errors after each epoch, measured here, say which one it must be."""
    write_archive(tmp_path, *archived)
    options = {"data": "speech-commands", "rows": ("LeNet",), "methods": ("erm",), "seeds": 1}
    (job,) = config(tmp_path, **options).jobs()
    last, best = job.run(lambda part: None)["results"]
    assert (last["selection"], best["selection"]) == ("last epoch", "best on validation")

    data = load_speech("speech-commands", tmp_path)
    model, training = job.training(data)
    errors = []
    for step in training:
        if step.epoch % 1 == 0:
            with torch.no_grad():
                wrong = [
                    (model.eval()(x).argmax(1) != y).double().mean()
                    for x, y in ((data.x_validation, data.y_validation), (data.x_test, data.y_test))
                ]
            errors.append([float(share) for share in wrong])
    assert last["error"] == errors[-1][1]
    assert best["epochs"] == 1 + min(range(3), key=lambda epoch: errors[epoch][0])
    assert [best["validation_error"], best["error"]] == min(errors, key=lambda pair: pair[0])


def test_jobs_are_those_asked_for():
    jobs = SpeechConfig().jobs()
    assert len({job.name for job in jobs}) == len(jobs) == 3 * 3 * 5
    assert [job.row for job in jobs[::15]] == ["LeNet", "VGG-11", "VGG-13"]
    assert [job.name for job in SpeechConfig(rows=("VGG-13",), seeds=1, methods=("erm",)).jobs()]
    for options, fault in (
        ({"rows": ("VGG-19",)}, "VGG-19"),
        ({"data": "digits"}, "digits"),
        ({"methods": ()}, "methods"),
        ({"methods": ("erm", "erm")}, "each once"),
        ({"seeds": 0}, "seeds is 0"),
        ({"epochs": 0.0}, "epochs is 0"),
        ({"width": 0}, "width is 0"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"eta": float("nan")}, "eta is nan"),
        ({"lr": -1.0}, "lr is -1"),
        ({"batch_size": 1}, "batch_size is 1"),
    ):
        with pytest.raises(InputError, match=fault):
            SpeechConfig(**options).jobs()


def test_seconds_are_all_steps_at_the_pace_of_the_first(small, monkeypatch):
    """By a clock that goes on by two seconds whenever it is read: 6 steps take 12."""
    clock = types.SimpleNamespace(monotonic=itertools.count(0.0, 2.0).__next__)
    monkeypatch.setattr("deep.tables.speech.time", clock)
    (job,) = config(small, rows=("LeNet",), methods=("mixup",), seeds=1).jobs()
    assert job.seconds() == 12.0


def test_deep_train_takes_speech_and_refuses_crops_of_it(small, tmp_path, capsys):
    command = ["--model", "lenet", "--data", "speech-small", "--data-dir", str(small),
               "--epochs", "1", "--batch-size", "8", "--out", str(tmp_path / "run")]  # fmt: skip
    assert train_main(command) == 0
    (line,) = read_lines(tmp_path / "run" / "log.jsonl")
    assert line["step"] == 2
    capsys.readouterr()
    assert train_main([*command[:-1], str(tmp_path / "other"), "--flip"]) == 2
    assert "for images: leave them out for speech-small" in capsys.readouterr().err


def test_the_check_runs_on_a_vgg_of_speech(small):
    """q̂'s error is that of its two gaps, and the derivatives are right."""
    (report,) = measure(CheckConfig(
        model="vgg11", width=2, data="speech-small", data_dir=small, epochs=0, samples=8,
        pair_samples=2, dtype="float64",
    ))  # fmt: skip
    assert report.claims["self_check"].verdict == "HOLDS"
    gaps = report.samples["normalization_gap"] + report.samples["homogeneity_gap"]
    np.testing.assert_allclose(report.samples["q"] - report.samples["q_hat"], gaps, atol=1e-12)
