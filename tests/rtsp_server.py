"""An RTSP server that shows a folder of pictures in a loop.

    python3 rtsp_server.py FOLDER [FPS] [h264|mjpeg] [PORT]

FOLDER holds 00000.jpg, 00001.jpg, ... of one size. Prints "ready PORT" when it listens on 127.0.0.1 at /cam;
ends with its standard input, so that it never outlives the test that started it. Runs under the system's own
Python, with the Debian packages gir1.2-gst-rtsp-server-1.0, gstreamer1.0-rtsp, gstreamer1.0-plugins-good,
-bad and -ugly, gstreamer1.0-libav and python3-gi.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def launch_line(folder: str, fps: int, codec: str) -> str:
    pictures = (
        f'multifilesrc location="{folder}/%05d.jpg" start-index=0 loop=true'
        f' caps="image/jpeg,framerate={fps}/1" ! jpegdec ! videoconvert ! video/x-raw,format=I420'
    )
    if codec == "mjpeg":
        return f"( {pictures} ! jpegenc ! rtpjpegpay name=pay0 pt=26 )"
    return (
        f"( {pictures} ! x264enc tune=zerolatency speed-preset=ultrafast bitrate=4000 key-int-max={fps}"
        " ! rtph264pay name=pay0 pt=96 config-interval=1 )"
    )


def main(argv: list[str]) -> None:
    folder = argv[0]
    fps, codec, port = int((argv[1:2] or ["25"])[0]), (argv[2:3] or ["h264"])[0], (argv[3:4] or ["0"])[0]
    Gst.init(None)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(launch_line(folder, fps, codec))
    factory.set_shared(True)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/cam", factory)
    server.attach(None)
    print("ready", server.get_bound_port(), flush=True)
    loop = GLib.MainLoop()
    GLib.io_add_watch(sys.stdin, GLib.PRIORITY_DEFAULT, GLib.IO_HUP, lambda *_: loop.quit())
    loop.run()


if __name__ == "__main__":
    main(sys.argv[1:])
