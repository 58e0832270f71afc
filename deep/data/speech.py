"""Spoken words as spectrograms: Google's Speech Commands, and small sets of the same form.

The front end follows Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018, section
3.3: normalised spectrograms of 16 kHz clips, padded with zeros to 160 × 101. That is from memory,
not checked against their text; it states, so remembered, no window, hop, scale or norm. What a
public loader of that time (GCommandsPytorch) does fits their numbers and is done here: a periodic
Hamming window of 20 ms, a hop of 10 ms, log(1 + |STFT|) of samples in [-1, 1), each clip to mean 0
and deviation 1. No number of one clip enters another, so none of the test part enters training.
That gives 161 frequencies; which one they dropped is not known. Here it is 0 Hz, the recorder's
offset, so row k is 50·(k + 1) Hz. Clips are padded at their end before the transform, frames are
centred at multiples of the hop, and the signal is mirrored at both ends.
"""

import io
import wave
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import torch
from jaxtyping import Float, Int, Int16
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from deep.data.download import REMOTE_FILES, fetch
from deep.data.examples import Examples
from deep.data.files import reading, source_line, tar_files
from theory.errors import InputError, unknown

RATE = 16_000
WINDOW, HOP = 320, 160  # samples: 20 ms and 10 ms
SHAPE = (160, 101)  # frequencies 50, 100 … 8,000 Hz, by frames 0, 10 … 1,000 ms
FOLDS = 5
SMALL = "speech-small"
_ARCHIVES = {
    "speech-commands": "speech_commands_v0.02.tar.gz",
    "speech-commands-v0.01": "speech_commands_v0.01.tar.gz",
}
SPEECH_SETS = (SMALL, *_ARCHIVES)
_LISTS = ("validation_list.txt", "testing_list.txt")
_FOLDER = "speech_commands"
_CHUNK = 256  # clips transformed at once
_MOST_BYTES = 2**32  # that an archive unpacks to; 105,829 clips of a second have 3.4 GB
_MOST_CLIP = 2**20  # bytes of a clip's file; one of a second has 32,044

# A clip's name, "<word>/<file>.wav", -> its samples.
Audio = dict[str, Int16[np.ndarray, " samples"]]


@dataclass(frozen=True, kw_only=True)
class SpeechData(Examples):
    """Spectrograms of one-second clips, (clips, 1, 160, 101), labelled by the word spoken.

    Attributes:
        x_validation: The official validation part; empty for `speech-small`. No speaker of it is in
            another part.
        y_validation: Its labels.
        words: The words, in the order of the labels.
    """

    x_validation: Float[Tensor, "validation 1 160 101"]
    y_validation: Int[Tensor, " validation"]
    words: tuple[str, ...]


def load_speech(name: str, data_dir: str | Path | None = None, fold: int = 0) -> SpeechData:
    """Load a set of spoken words.

    `speech-commands` is the published archive v0.02 (Warden, "Speech Commands", 2018: 35 words,
    105,829 clips) and `speech-commands-v0.01` the one before it (30 words, 64,721 clips), with
    their official lists of validation and test clips. Zhang et al. had 30 words, so v0.01. The talk
    does not say which; it cites the paper of 2018, which describes v0.02. The archive is read in
    one pass and never unpacked. Memory: 64,640 bytes a clip, and 32,000 more while loading, so 10.3
    GB and then 6.9 GB for v0.02, 6.3 GB and then 4.2 GB for v0.01; `deep.train` holds the training
    part twice.

    `speech-small` is any folder of `<word>/<speaker>_nohash_<k>.wav`. The speakers are dealt to
    five folds once and for all, words in proportion as far as that goes; one fold is the test part
    and no speaker of it is in the training part. A validation part drawn from the training part
    (as `deep.train` does) shares speakers with what is left.

    Words that begin with an underscore (`_background_noise_`) are left out.

    Args:
        name: One of `SPEECH_SETS`.
        data_dir: A folder that holds the archive, or the words' folders; or its parent, where it
            is called `speech_commands`. Without it an archive is downloaded once and kept in the
            user's cache.
        fold: Which fold of `speech-small` is the test part, 0 to 4.

    Raises:
        InputError: Unknown name, no usable files in the folder, a damaged archive, a failed
            download, or a clip that is not 16 kHz, 16 bit, mono and at most one second.
    """
    if name not in SPEECH_SETS:
        raise unknown("speech set", name, SPEECH_SETS)
    if not 0 <= fold < FOLDS:
        raise InputError(f"fold is {fold}: there are {FOLDS}, from 0 to {FOLDS - 1}")
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
    elif name == SMALL:
        raise InputError(
            f"{SMALL} is not downloaded: name a folder of <word>/<speaker>_nohash_<k>.wav files "
            "by --data-dir, or choose speech-commands"
        )
    else:
        folder = fetch(REMOTE_FILES[name][0]).parent
    try:
        if not folder.is_dir():
            raise InputError(f"data folder {folder} is not a folder; name one that holds {name}")
        return _small(folder, fold) if name == SMALL else _published(name, folder)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def read_wav(content: bytes, path: Path) -> Int16[np.ndarray, " samples"]:
    """The samples of a clip.

    Args:
        content: The whole file.
        path: What an error calls it.

    Raises:
        InputError: It is no WAV file, cut short, empty, longer than a second, or not 16 kHz,
            16 bit and mono.
    """
    if not content:
        raise InputError(f"{path} is empty: get it again")
    with reading(path), wave.open(io.BytesIO(content)) as clip:
        count, rate = clip.getnframes(), clip.getframerate()
        bits, channels = 8 * clip.getsampwidth(), clip.getnchannels()
        frames = clip.readframes(count)
    if (rate, bits, channels) != (RATE, 16, 1):
        raise InputError(
            f"{path} has {rate} Hz, {bits} bit and {channels} channel{'s' * (channels != 1)}, not "
            f"{RATE} Hz, 16 bit and 1 channel: convert it"
        )
    if len(frames) < 2 * count:
        raise InputError(
            f"{path} holds {len(frames) // 2} of the {count} samples that it declares: it is cut "
            "short; get it again"
        )
    if not 0 < count <= RATE:
        raise InputError(
            f"{path} has {count} samples, not 1 to {RATE}: it must last at most a second"
        )
    return np.frombuffer(frames, "<i2")


def spectrogram(clips: Int16[np.ndarray, "clips 16000"]) -> Float[Tensor, "clips 1 160 101"]:
    """log(1 + |STFT|) of clips of one second, each to mean 0 and deviation 1; silence is 0."""
    transform = torch.stft(
        torch.from_numpy(clips).float() / 2**15,
        n_fft=WINDOW,
        hop_length=HOP,
        window=torch.hamming_window(WINDOW),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    x = transform[:, None, 1:].abs().log1p()
    std, mean = torch.std_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    return (x - mean) / std.clamp_min(1e-8)


def _small(folder: Path, fold: int) -> SpeechData:
    for root in (folder, folder / _FOLDER):
        if files := sorted(filter(_is_clip, root.glob("*/*.wav"))):
            break
    else:
        raise InputError(
            f"no {SMALL} in {folder}: looked there and in its sub-folder {_FOLDER} for "
            "<word>/<speaker>_nohash_<k>.wav; name the folder that holds the words' folders"
        )
    audio: Audio = {}
    for path in files:
        with reading(path), path.open("rb") as stream:
            content = stream.read(_MOST_CLIP)
        audio[_clip_name(path)] = read_wav(content, path)
        if "_nohash_" not in path.name:
            raise InputError(
                f"{path} does not name its speaker: call it <speaker>_nohash_<k>.wav, or take it "
                "away"
            )
    names = list(audio)
    words = [name.split("/")[0] for name in names]
    speakers = [name.split("/")[1].split("_nohash_")[0] for name in names]
    fewest = min(Counter(words).values())
    if len(set(words)) < 2 or len(set(speakers)) < FOLDS or fewest < FOLDS:
        raise InputError(
            f"{root} has {len(set(words))} words by {len(set(speakers))} speakers, {fewest} clips "
            f"of the rarest: {SMALL} needs at least 2, {FOLDS} and {FOLDS}"
        )
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    train, test = list(folds.split(names, words, speakers))[fold]
    parts = {"train": [names[i] for i in train], "test": [names[i] for i in test]}
    return _prepared(SMALL, audio, {**parts, "validation": []}, source_line(files))


def _published(name: str, folder: Path) -> SpeechData:
    places = [root / _ARCHIVES[name] for root in (folder, folder / _FOLDER)]
    archive = next((path for path in places if path.is_file()), None)
    if archive is None:
        raise InputError(
            f"no {name} in {folder}: looked there and in its sub-folder {_FOLDER} for "
            f"{_ARCHIVES[name]}; name the folder that holds it, or leave --data-dir out to download"
        )
    audio: Audio = {}
    lists: dict[str, list[str]] = {}
    found = tar_files(archive, lambda path: path.name in _LISTS or _is_clip(path), _MOST_BYTES)
    for path, content in found:
        if path.name in _LISTS:
            with reading(archive):
                lists[path.name] = content.decode().split()
        elif _is_clip(path):
            audio[_clip_name(path)] = read_wav(content, archive / path)
    validation, test = (sorted(lists.get(text, [])) for text in _LISTS)
    listed = [*validation, *test]
    lacking = [text for text in _LISTS if text not in lists] + sorted({*listed} - audio.keys())
    if lacking or len({*listed}) < len(listed):
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        fault = f"lacks {lacking[0]}{more}" if lacking else "lists a clip twice"
        raise InputError(f"{archive} {fault}: it is not as published; get it again")
    train = sorted(audio.keys() - listed)
    parts = {"train": train, "validation": validation, "test": test}
    return _prepared(name, audio, parts, source_line([archive]))


def _is_clip(path: PurePath) -> bool:
    """Whether a file is a word's clip: no noise for the background, nothing hidden."""
    word = path.parent.name
    return path.suffix == ".wav" and word[:1] not in ("", "_", ".") and path.name[0] != "."


def _clip_name(path: PurePath) -> str:
    return f"{path.parent.name}/{path.name}"


def _prepared(name: str, audio: Audio, parts: Mapping[str, list[str]], source: str) -> SpeechData:
    """Spectrograms of the named clips."""
    words = sorted({clip.split("/")[0] for clip in audio})
    x, y = {}, {}
    for part, clips in parts.items():
        x[part] = torch.empty(len(clips), 1, *SHAPE)
        for start in range(0, len(clips), _CHUNK):
            chunk = clips[start : start + _CHUNK]
            padded = np.zeros((len(chunk), RATE), np.int16)
            for row, clip in zip(padded, chunk, strict=True):
                row[: len(audio[clip])] = audio[clip]
            x[part][start : start + len(chunk)] = spectrogram(padded)
        labels = [words.index(clip.split("/")[0]) for clip in clips]
        y[part] = torch.tensor(labels, dtype=torch.int64)
    if not len(x["train"]) or not len(x["test"]):
        raise InputError(
            f"{name} ({source}): the training or the test part is empty; get the files again"
        )
    return SpeechData(
        name=name,
        x_train=x["train"],
        y_train=y["train"],
        x_validation=x["validation"],
        y_validation=y["validation"],
        x_test=x["test"],
        y_test=y["test"],
        num_classes=len(words),
        words=tuple(words),
        source=source,
    )
