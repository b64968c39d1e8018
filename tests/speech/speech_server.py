"""A server with OpenAI's /v1/audio/speech, started as a process; the model names the behaviour.

It prints its port, and answers GET / with the requests it has had, as JSON.
"""

import io
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import soundfile

seen = []
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)


def wav(samples, rate=24_000, subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype, format="WAV")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, json.dumps(seen).encode())

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Authorization"]
        seen.append({"path": self.path, "key": key, **request})
        mine = sum(r["model"] == request["model"] for r in seen)
        match request["model"]:
            case "good":
                pcm = request["response_format"] == "pcm"
                self.answer(200, (TONE * 32767).astype("<i2").tobytes() if pcm else wav(TONE))
            case "good, 16 kHz":
                self.answer(200, (TONE * 32767).astype("<i2").tobytes(), "audio/pcm;rate=16000")
            case "fails twice" if mine > 2:
                self.answer(200, wav(TONE))
            case "fails twice" | "fails":
                self.answer(500, b'{"error": {"message": "out of breath"}}')
            case "repeats the key":
                said = json.dumps({"error": {"message": f"wrong key {key}" + "x" * 1000}})
                self.answer(401, said.encode())
            case "refuses without end":
                self.send_response(400)
                self.end_headers()
                for _ in range(100_000):
                    self.wfile.write(b"no " * 1000)
            case "refuses":
                self.answer(400, b'{"error": {"message": "no such voice"}}')
            case "hangs":
                time.sleep(3600)
            case "drips":
                self.send_response(200)
                self.end_headers()
                for _ in range(36_000):
                    self.wfile.write(b"R")
                    self.wfile.flush()
                    time.sleep(0.1)
            case "breaks off":
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(b"RIFF")
            case "silent":
                self.answer(200, wav(0 * TONE))
            case "low rate":
                self.answer(200, wav(TONE, 2000))
            case "not finite":
                self.answer(200, wav(np.append(TONE, np.nan), subtype="FLOAT"))
            case "prose":
                self.answer(200, b"I would rather not.")
            case "empty":
                self.answer(200, b"")

    def answer(self, code, body, kind="audio/any"):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    sys.stdout.close()
    server.serve_forever()
