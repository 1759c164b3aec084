"""Send DICOM files to an Orthanc by C-STORE and fetch what it then serves.

unshare -rn python tests/orthanc_round.py SENT SERVED

In a network namespace of its own, because Orthanc listens to every network of the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

REST, DICOM = 8042, 4242
SETTINGS = {
    "HttpPort": REST,
    "DicomPort": DICOM,
    "AuthenticationEnabled": False,
    "DicomAlwaysAllowStore": True,
    "StorageCompression": False,
}


def ask(path: str, content: bytes | None = None) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{REST}/{path}", content, timeout=60) as answer:
        return answer.read()


def main(sent: Path, served: Path) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "orthanc.json")
        settings.write_text(json.dumps(SETTINGS | {"StorageDirectory": folder, "IndexDirectory": folder}))
        orthanc = subprocess.Popen(["Orthanc", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 60
            while True:
                try:
                    ask("system")
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert orthanc.poll() is None and time.monotonic() < end, "Orthanc did not start"
                    time.sleep(0.05)
            # -R: propose only what the files need; +sd +r: all files below the folder.
            store = ["storescu", "-R", "+sd", "+r", "+sp", "*.dcm", "127.0.0.1", str(DICOM), str(sent)]
            subprocess.run(store, check=True)
            for name in json.loads(ask("instances")):
                (served / f"{name}.dcm").write_bytes(ask(f"instances/{name}/file"))
            print(len(json.loads(ask("studies"))), len(json.loads(ask("series"))))
        finally:
            orthanc.terminate()
            orthanc.wait(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
