"""Small real videos and images whose bytes depend on their number alone."""
import io
import os
from fractions import Fraction

import av
import numpy as np
from PIL import Image

os.environ.setdefault('SVT_LOG', '0')  # or the encoder of AV1 prints a page for each video
WIDTH, HEIGHT, FPS = 96, 72, 4  # of all videos; each codec takes even sides of 64 pixels or more
CODECS = dict(  # as the published data sets have them -> encoder and container
    h264=('libx264', 'mp4', dict(preset='ultrafast')),
    h265=('libx265', 'mp4',
        {'preset':'ultrafast', 'x265-params':'log-level=none:pools=none:frame-threads=1'}),
    vp9=('libvpx-vp9', 'webm', dict(deadline='realtime', speed='8')),
    av1=('libsvtav1', 'mp4', dict(preset='12')))


def picture(number, step=0, width=WIDTH, height=HEIGHT):
    "uint8 [height, width, 3]: a gradient and a square that moves with `step`; unlike any other number."
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(number)
    colours = rng.integers(0, 256, (2, 3))
    slope = ((x*int(rng.integers(1, 4))+y*int(rng.integers(1, 4)))/(3*(width+height)))[..., None]
    frame = (colours[0]*(1-slope)+colours[1]*slope).astype(np.uint8)
    left = (int(rng.integers(0, width))+3*step) % (width-16)
    top = (int(rng.integers(0, height))+2*step) % (height-16)
    frame[top:top+16, left:left+16] = 255-colours[0]
    return frame


def video(number, seconds, codec='h264', container=None):
    "The bytes of a video of about so many seconds: `FPS` frames a second, and at least one."
    encoder, usual, options = CODECS[codec]
    file, count = io.BytesIO(), max(1, round(seconds*FPS))
    with av.open(file, 'w', format=dict(mkv='matroska').get(container, container or usual),
            container_options=dict(fflags='+bitexact')) as out:
        stream = out.add_stream(encoder, rate=Fraction(FPS), options=options)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = WIDTH, HEIGHT, 'yuv420p', 1
        stream.codec_context.gop_size = 2*FPS
        for step in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, step), format='rgb24')
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def truncated(data):
    "The first third of a video: its index, at the end, is lost, as after a download that stopped."
    return data[:len(data)//3]


def image(number, format='jpeg', width=WIDTH, height=HEIGHT):
    "The bytes of an image."
    file = io.BytesIO()
    Image.fromarray(picture(number, 0, width, height)).save(file, format)
    return file.getvalue()
