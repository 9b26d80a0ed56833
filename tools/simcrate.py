"""The simulator alone, in a folder of its own: the committed sources of the core and what it stands on, so that a build after a change takes
seconds. For tools/rules and tools/mutants.
"""
import hashlib, io, json, os, re, subprocess, tarfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What the simulator is made of.
MODULES = ["buf", "core", "format", "sim", "wire"]
# What its manifest does without: other members, programs, benches.
LEFT_OUT = r'(?m)^(default-)?members.*\n|^understudy-kernel.*\n|^default-run.*\n|^\[\[bin\]\]\nname = "understudy"\n.*\n|^\[\[bench\]\]\n.*\n.*\n'
# Seeds played at once, and seconds that they may take: a changed core may run in circles.
CHUNK = 250
PATIENCE = 240


class Simcrate:
    """Sources in target/NAME/source, what is built of them in target/NAME/target. `under` is a command that builds and seeds run under."""

    def __init__(self, name, under=()):
        self.folder = os.path.join(TOP, "target", name)
        self.source = os.path.join(self.folder, "source")
        self.under = list(under)
        self.env = dict(os.environ, CARGO_TARGET_DIR=os.path.join(self.folder, "target"))

    def unpack(self):
        """The committed sources; files that have not changed keep their time, and are not compiled again."""
        archive = subprocess.run(["git", "archive", "HEAD", "Cargo.toml", "Cargo.lock", "src"], cwd=TOP, capture_output=True, check=True)
        wanted = [f"src/{m}{end}" for m in MODULES for end in ("/", ".rs")] + ["src/lib.rs", "src/bin/simulate.rs", "Cargo"]
        kept = set()
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            for entry in tar:
                if not entry.isfile() or not entry.name.startswith(tuple(wanted)):
                    continue
                text = tar.extractfile(entry).read().decode()
                path = os.path.join(self.source, entry.name)
                if entry.name == "src/lib.rs":
                    text = "".join(f"pub mod {m};\n" for m in MODULES)
                if entry.name == "Cargo.toml":
                    text = re.sub(LEFT_OUT, "", text)
                kept.add(path)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                write({path: text})
        for folder, _, files in os.walk(os.path.join(self.source, "src")):
            for path in (os.path.join(folder, f) for f in files):
                if path not in kept:
                    os.remove(path)

    def run(self, command):
        return subprocess.run([*self.under, *command], cwd=self.source, env=self.env, capture_output=True, text=True)

    def build(self):
        """What the compiler says against it, or nothing."""
        built = self.run(["cargo", "build", "-q", "--profile", "sim", "--bin", "simulate"])
        return built.stderr if built.returncode != 0 else ""

    def play(self, seeds):
        """The first seed that failed, and what came of it, in words: (None, "not found") if none did."""
        binary = os.path.join(self.env["CARGO_TARGET_DIR"], "sim", "simulate")
        for first in range(0, seeds, CHUNK):
            chunk = f"{first}..{min(first + CHUNK, seeds)}"
            played = self.run(["timeout", str(PATIENCE), binary, "--seeds", chunk, "--threads", "1", "--brief"])
            found = re.search(r"^seed (\d+): (.*)$", played.stdout, re.M)
            if found:
                seed, text = found.groups()
                where = re.search(r"src/(\S+?\.rs)", text)
                return int(seed), f"assertion in {where.group(1)}" if text[0] == "0" and where else text.split(":")[0]
            if played.returncode == 124:
                return first, f"runs in circles, within {CHUNK} seeds"
            if played.returncode != 0:
                return first, f"ends with {played.returncode}: {played.stderr[-300:]}"
        return None, "not found"


class Kept:
    """Results that a broken-off run finds again, by what they are results of."""

    def __init__(self, folder):
        self.path = os.path.join(folder, "found.json")
        self.found = json.load(open(self.path)) if os.path.exists(self.path) else {}
        parts = [f"src/{m}{end}" for m in MODULES for end in ("", ".rs")]
        trees = subprocess.run(["git", "ls-tree", "HEAD", *parts], cwd=TOP, capture_output=True, check=True, text=True)
        self.sources = trees.stdout

    def key(self, *what):
        return hashlib.sha256(json.dumps([self.sources, *what]).encode()).hexdigest()[:16]

    def put(self, key, value):
        self.found[key] = value
        json.dump(self.found, open(self.path, "w"))


def write(files):
    """Files as {path: text}; what is the same already is left alone."""
    for path, text in files.items():
        if not os.path.exists(path) or open(path).read() != text:
            open(path, "w").write(text)
