"""How demo/speech was made: prompts of Debian's asterisk-core-sounds packages as 16 kHz FLAC.

    apt-get download asterisk-core-sounds-en-g722 asterisk-core-sounds-es-g722
    for package in *.deb; do dpkg -x "$package" unpacked; done
    python demo/fetch_prompts.py unpacked

Needs ffmpeg for the G.722 code. Users need neither: the FLAC files are part of the repository.
"""

import csv
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
WANTED = {"en": 70, "es": 50}
SECONDS = (1.5, 3.6)
# Tones, single words in series (letters, digits, signs), and menus of channel names are no running speech.
PASSED_OVER = re.compile(r"^(ascii|h-|mon-|day-|beep|silence|spy-|confbridge-(join|leave)$|.*tone)")


def main(unpacked: Path, out: Path) -> None:
    rows = []
    for language, wanted in WANTED.items():
        (folder,) = unpacked.glob(f"**/sounds/{language}_*")
        seen, clips = set(), []
        for path in sorted(folder.glob("*.g722")):
            if "-" not in path.stem or PASSED_OVER.match(path.stem):
                continue
            decode, to_pcm = "ffmpeg -v error -f g722 -i", f"-f s16le -ar {RATE} -ac 1 -"
            command = [*decode.split(), str(path), *to_pcm.split()]
            samples = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.int16)
            digest = hashlib.sha256(samples.tobytes()).hexdigest()
            if SECONDS[0] <= len(samples) / RATE <= SECONDS[1] and digest not in seen:
                seen.add(digest)
                clips.append((path.stem, samples))
        chosen = [clips[i * len(clips) // wanted] for i in range(wanted)]
        (out / language).mkdir(parents=True, exist_ok=True)
        for name, samples in chosen:
            soundfile.write(out / language / f"{name}.flac", samples, RATE, compression_level=1.0)
            rows.append((f"{language}/{name}.flac", language, name.replace("-", " ").replace("_", " ")))
    with open(out / "prompts.tsv", "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, delimiter="\t", lineterminator="\n").writerows([("file", "language", "text"), *rows])


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(f"usage: {sys.argv[0]} FOLDER, where the two Debian packages are unpacked")
    main(Path(sys.argv[1]), Path(__file__).parent / "speech")
