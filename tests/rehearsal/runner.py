"""Commands of the rehearsal, each in a process of its own, and the table that they end in.

A command is forked from this process, which has imported the large libraries already, or started as a user
would (`fresh=True`). Forked or not, it has its own argv, working folder, log and exit code.
"""
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Fault(Exception):
    "A step that did not do what it should; the message names it."


def call(words):
    "What `python WORDS` would do: a script, or `fvlm` and its words; ends the process."
    sys.argv = list(words)
    try:
        if words[0] == 'fvlm':
            from fvlm.cli import main
            sys.exit(main(list(words[1:])))
        runpy.run_path(words[0], run_name='__main__')
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1 if e.code else 0
        if e.code and not isinstance(e.code, int): print(e.code)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Process:
    "A running command: `poll` and `wait` give its exit code, below 0 for a signal."
    def __init__(self, words, folder, log, env=None, fresh=False, launch=()):
        self.log, self.began, self.code = Path(log), time.time(), None
        self.log.parent.mkdir(parents=True, exist_ok=True)
        words = [str(w) for w in words]
        if fresh or launch:
            if words[0] == 'fvlm': words[:1] = '-c', 'import sys; from fvlm.cli import main; sys.exit(main())'
            with open(self.log, 'a') as out:
                self.child = subprocess.Popen([sys.executable, *launch, *words], cwd=folder, stdout=out,
                    stderr=out, env=os.environ | (env or {}), start_new_session=True)
            self.pid = self.child.pid
            return
        sys.stdout.flush()
        self.child, self.pid = None, os.fork()
        if self.pid: return
        os.setsid()
        out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2): os.dup2(out, stream)
        sys.stdout, sys.stderr = (open(stream, 'w', closefd=False) for stream in (1, 2))
        os.chdir(folder)
        os.environ.update(env or {})
        call(words)

    def poll(self):
        if self.code is None and self.child: self.code = self.child.poll()
        elif self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid: self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, timeout=900):
        end = time.time()+timeout
        while self.poll() is None:
            if time.time() > end:
                self.kill()
                raise Fault(f'took longer than {timeout} s; {self.tail()}')
            time.sleep(.02)
        return self.code

    def kill(self, pid=0):
        "SIGKILL to the whole group, or to one process of it."
        try: (os.kill if pid else os.killpg)(pid or self.pid, signal.SIGKILL)
        except ProcessLookupError: pass

    def children(self):
        "Processes that this one has started: pid -> command line."
        found = {}
        for file in Path(f'/proc/{self.pid}/task').glob('*/children'):
            for pid in map(int, file.read_text().split()):
                try: found[pid] = Path(f'/proc/{pid}/cmdline').read_text().replace('\0', ' ')
                except OSError: continue
        return found

    def tail(self):
        lines = self.log.read_text(errors='replace').split('\n') if self.log.is_file() else []
        return f'{self.log}:\n'+'\n'.join(lines[-25:])


def until(happens, process, timeout=600):
    end = time.time()+timeout
    while not happens():
        if process.poll() is not None:
            raise Fault(f'ended with {process.code} before it could be stopped; {process.tail()}')
        if time.time() > end: raise Fault(f'waited {timeout} s in vain; {process.tail()}')
        time.sleep(.02)


class Rehearsal:
    "Runs the steps, compares what they count with what was expected, and keeps the table."
    def __init__(self, home, quick=False, jobs=2):
        self.home, self.quick, self.jobs = Path(home).resolve(), quick, jobs
        self.work, self.logs, self.rows, self.faults = self.home/'work', self.home/'logs', [], []
        self.work.mkdir(parents=True, exist_ok=True)
        self.start = time.time()

    def begin(self, name, words, **how):
        return Process(words, self.work, self.logs/f"{name.replace(' ', '-').replace('/', '-')}.log", **how)

    def run(self, name, words, expect=0, timeout=900, **how):  # -> seconds
        "One command, to its end."
        process = self.begin(name, words, **how)
        if (code := process.wait(timeout)) != expect:
            raise Fault(f'{name} ended with {code}, not {expect}; {process.tail()}')
        return time.time()-process.began

    def run_all(self, commands):  # name -> words; -> name to seconds
        "Commands that do not need one another, some at a time; what fails is a fault, and the others go on."
        waiting, running, seconds = list(commands.items()), {}, {}
        while waiting or running:
            while waiting and len(running) < self.jobs:
                name, words = waiting.pop(0)
                running[name] = self.begin(name, words)
            time.sleep(.02)
            for name, process in list(running.items()):
                if process.poll() is None: continue
                del running[name]
                seconds[name] = time.time()-process.began
                if process.code: self.faults.append(f'{name} ended with {process.code}; {process.tail()}')
        return seconds

    def row(self, step, given, out, left_out=None, seconds=0., expected=None):
        """A row of the table: samples in, samples out, and how many were left out for which reason.

        `expected` has the same three; what differs is a fault.
        """
        left_out = {str(k):int(v) for k, v in sorted((left_out or {}).items()) if v}
        found = dict(samples_in=given, samples_out=out, left_out=left_out)
        wrong = [f'{k} is {found[k]}, expected {v}' for k, v in (expected or {}).items() if found[k] != v]
        if wrong: self.faults.append(f"{step}: {'; '.join(wrong)}")
        row = dict(step=step, **found, seconds=round(seconds, 1), ok=not wrong)
        self.rows.append(row)
        print(line(row), flush=True)

    def check(self, step, ok, text):
        "Something that must hold and has no column of the table; rows of that step are then not right."
        if ok: return
        self.faults.append(f'{step}: {text}')
        for row in self.rows: row['ok'] = row['ok'] and row['step'] != step


def line(row):
    reasons = ', '.join(f'{n} {why}' for why, n in row['left_out'].items())
    return (f"{'ok' if row['ok'] else 'WRONG':6}{row['step']:34}{row['samples_in']:>8,}"
            f"{row['samples_out']:>8,}{row['seconds']:>8.1f} s  {reasons}")


def read_json(path): return json.loads(Path(path).read_text())
