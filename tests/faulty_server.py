"""A server of files that fails as servers do. `python tests/faulty_server.py FOLDER` prints its port.

An address is /FAULT-N.ID/NAME: the first N times that a piece of a tar is asked for under this ID (always,
without N), the server fails in this way; everything else it does right. (`lie`: the bytes of the next sample
of the tar with the headers of the one that was asked for, from the offsets in FOLDER/index.npy.) While there
is a file `down`, the fault `down` is 503. /requests answers how many requests came in.
"""
import sys, time
import numpy as np
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER, asked = Path(sys.argv[1]), Counter()

def next_sample(name, start, size):
    rows = np.load(FOLDER/'index.npy')
    offsets = rows['offset'][rows['shard'] == int(name.partition('.')[0])].tolist()
    other = offsets[(offsets.index(start)+1) % len(offsets)]
    return (FOLDER/name).read_bytes()[other:other+size]

class Faulty(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def answer(self, status, body, **headers):
        self.send_response(status)
        headers = dict(Content_Length=len(body)) | headers
        for k, v in headers.items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        fault, _, name = self.path.strip('/').partition('/')
        fault, _, times = fault.partition('.')[0].partition('-')
        asked['all'] += 1
        if fault == 'requests': return self.answer(200, str(asked['all']).encode())
        if not name:
            links = ''.join(f'<a href="{p.name}">{p.name}</a>\n' for p in sorted(FOLDER.iterdir()))
            return self.answer(200, links.encode(), Content_Type='text/html')
        wanted = self.headers.get('Range')
        asked[self.path, wanted] += 1
        if not (FOLDER/name).is_file(): return self.answer(404, b'')
        data, status, headers = (FOLDER/name).read_bytes(), 200, {}
        fails = name.endswith('.tar') and asked[self.path, wanted] <= int(times or 10**9)
        fault = fault if fails else 'none'
        if wanted and fault != 'whole':
            start, end = (int(x) if x else None for x in wanted.removeprefix('bytes=').split('-'))
            if fault == 'first': start, end = 0, end-start
            whole, data, status = len(data), data[start:None if end is None else end+1], 206
            if fault == 'short': data = data[:-512]
            if fault == 'lie': data = next_sample(name, start, len(data))
            headers = dict(Content_Range=f'bytes {start}-{start+len(data)-1}/{whole}')
        if fault == 'nameless': headers = {}
        if fault == 'down' and (FOLDER/'down').exists(): fault = '503'
        if fault.isdigit(): return self.answer(int(fault), b'no')
        if fault == 'hang': time.sleep(5)
        if fault == 'drop':
            self.answer(status, data[:len(data)//2], Content_Length=len(data), **headers)
            self.close_connection = True
        elif fault in ('unsaid', 'drip'):  # a body of no announced length: half of it, or a byte now and then
            self.send_response(status)
            for k, v in headers.items(): self.send_header(k.replace('_', '-'), v)
            if fault == 'drip': self.send_header('Content-Length', str(len(data)))
            else: self.send_header('Connection', 'close')
            self.end_headers()
            if fault == 'unsaid': return self.wfile.write(data[:len(data)//2])
            try:
                for i in range(len(data)):
                    self.wfile.write(data[i:i+1])
                    time.sleep(.1)
            except OSError: self.close_connection = True  # nobody waited for the end
        elif fault == 'slow':
            self.answer(status, b'', Content_Length=len(data), **headers)
            for i in range(0, len(data), 1000):
                time.sleep(.005)
                self.wfile.write(data[i:i+1000])
        else: self.answer(status, data, **headers)

server = ThreadingHTTPServer(('127.0.0.1', 0), Faulty)
print(server.server_port, flush=True)
server.serve_forever()
