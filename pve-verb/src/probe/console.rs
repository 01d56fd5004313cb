//! The console group: the guest's screen twice, and what its serial line says by itself. Nothing is sent to the guest.
//!
//! The picture is written by QEMU, but what is in it is the guest's: its header is checked before a byte is allocated by it.

use super::sketch::Sketch;
use crate::helper::run::Outbox;
use crate::procfs::Diagnosis;
use crate::qga;
use crate::qmp::{QmpError, ScreenFile};
use proto::ProbeOutcome;
use rustix::fs::{Mode, OFlags, openat};
use serde_json::json;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The largest picture file: 3840×2160. The helper's memory holds one, and its encoding.
const PICTURE: u64 = 24 * 1024 * 1024;
/// The largest width and height.
const SIDE: usize = 16_384;
/// The most of a serial line.
const SERIAL: usize = 1024 * 1024;
/// The most of the kernel's table of sockets.
const MOST_TABLE: u64 = 4 * 1024 * 1024;
/// How long the serial line is listened to.
const LISTEN: Duration = Duration::from_millis(500);

/// A picture: three bytes a pixel.
#[derive(Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

/// Parses QEMU's PPM (P6, 255).
///
/// # Errors
/// What is wrong with it.
pub fn parse_ppm(mut bytes: Vec<u8>) -> Result<Picture, String> {
    let whole = bytes.len();
    let mut rest = bytes.strip_prefix(b"P6").ok_or("it is no PPM")?;
    let mut numbers = [0_usize; 3];
    for number in &mut numbers {
        rest = rest.trim_ascii_start();
        let digits = rest.iter().take(6).take_while(|b| b.is_ascii_digit()).count();
        let (head, tail) = rest.split_at(digits);
        *number = std::str::from_utf8(head).ok().and_then(|t| t.parse().ok()).ok_or("its header is no PPM header")?;
        rest = tail;
    }
    let [width, height, depth] = numbers;
    if width == 0 || height == 0 || width > SIDE || height > SIDE || depth != 255 {
        return Err(format!("a picture of {width}×{height}, depth {depth}, is not one we take"));
    }
    let (header, pixels) = (whole - rest.len() + 1, rest.len().saturating_sub(1));
    if pixels != width * height * 3 {
        return Err(format!("{pixels} bytes of picture where {width}×{height} need {}", width * height * 3));
    }
    // In place: a second copy would be as large as the first.
    bytes.drain(..header);
    Ok(Picture { width, height, pixels: bytes })
}

/// Encodes as PNG.
///
/// # Errors
/// What the encoder says.
pub fn encode_png(picture: &Picture) -> Result<Vec<u8>, String> {
    let side = |n: usize| u32::try_from(n).map_err(|e| e.to_string());
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, side(picture.width)?, side(picture.height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().map_err(|e| e.to_string())?;
    writer.write_image_data(&picture.pixels).map_err(|e| e.to_string())?;
    writer.finish().map_err(|e| e.to_string())?;
    Ok(out)
}

/// Reads back a screen that QEMU has written.
///
/// # Errors
/// Where it can't be read, or is no picture.
pub fn read_screen(folder: impl AsFd, file: &ScreenFile) -> Result<Picture, String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut bytes = Vec::new();
    let read = openat(folder, file.name(), flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|file| File::from(file).take(PICTURE + 1).read_to_end(&mut bytes));
    match read {
        Ok(n) if n as u64 <= PICTURE => parse_ppm(bytes),
        Ok(_) => Err(format!("the screen is larger than {PICTURE} bytes")),
        Err(e) => Err(format!("the screen could not be read: {e}")),
    }
}

/// Answers with a screen, encoded; how it compares with the first one is a fact of the second.
pub(crate) fn answer(out: &Outbox, name: &str, since: Instant, picture: &Picture, first: &OnceLock<Sketch>, again: bool) {
    let sketch = Sketch::of(picture.width, picture.height, &picture.pixels);
    let likeness = again.then(|| first.get().map(|f| f.compared(&sketch))).flatten();
    let _ = first.set(sketch);
    match encode_png(picture) {
        Ok(bytes) => {
            out.facts(name, since, Some(bytes), json!({"width": picture.width, "height": picture.height, "likeness": likeness}));
        }
        Err(e) => out.without(name, since, ProbeOutcome::Failed, &e),
    }
}

/// What says whether somebody is on the serial line. Both tell of the network namespace in which they were opened, and the sandbox has
/// one of its own: so they are opened before it closes.
pub(crate) struct Sockets {
    diagnosis: io::Result<Diagnosis>,
    /// `/proc/net/unix`, for a kernel without socket diagnosis.
    table: Option<File>,
    /// The serial line's socket in that table.
    known_as: PathBuf,
}

impl Sockets {
    pub(crate) fn open(known_as: PathBuf) -> Self {
        Self { diagnosis: Diagnosis::open(), table: File::open("/proc/net/unix").ok(), known_as }
    }

    fn in_use(self, socket: &Path) -> bool {
        self.diagnosis.and_then(|d| d.anybody_on(socket)).unwrap_or_else(|_| {
            let mut text = Vec::new();
            let read = self.table.and_then(|t| t.take(MOST_TABLE).read_to_end(&mut text).ok());
            read.is_some() && in_use(&String::from_utf8_lossy(&text), &self.known_as)
        })
    }
}

/// The serial line, if the VM has one and nobody else listens to it.
pub(crate) fn serial(socket: &Path, sockets: Sockets, out: &Outbox) {
    let since = Instant::now();
    let name = "console/serial";
    // A second client would wait in the backlog and be served when the first one leaves: somebody's console would go to us.
    if sockets.in_use(socket) {
        return out.without(name, since, ProbeOutcome::Unavailable, "somebody is connected to the serial console");
    }
    match qga::listen(socket, since + LISTEN, SERIAL) {
        Ok(raw) => out.captured(name, since, raw.into_bytes()),
        Err(QmpError::NoSocket) => out.without(name, since, ProbeOutcome::Unavailable, "the VM has no serial socket"),
        Err(e) => out.without(name, since, ProbeOutcome::from(&e), &e.to_string()),
    }
}

/// Whether `/proc/net/unix` shows a connected socket (state 03) under this path, in either spelling of `/run`.
fn in_use(table: &str, socket: &Path) -> bool {
    let path = socket.to_string_lossy();
    let other = format!("/var{path}");
    table.lines().any(|l| {
        let fields: Vec<&str> = l.split_ascii_whitespace().collect();
        matches!(fields.as_slice(), [_, _, _, _, _, "03", _, p] if *p == path || *p == other)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_picture_survives_and_a_lying_header_does_not() {
        let picture = parse_ppm(b"P6\n2 1\n255\nabcdef".to_vec()).unwrap();
        assert_eq!(picture, Picture { width: 2, height: 1, pixels: b"abcdef".to_vec() });
        let encoded = encode_png(&picture).unwrap();
        let mut reader = png::Decoder::new(io::Cursor::new(encoded)).read_info().unwrap();
        let mut back = vec![0; 6];
        reader.next_frame(&mut back).unwrap();
        assert_eq!(back, b"abcdef");
        for bad in [
            &b""[..],
            b"P5\n2 1\n255\nabcdef",
            b"P6\n2 1\n255\nabcde",
            b"P6\n2 1\n255\nabcdefg",
            b"P6\n0 1\n255\n",
            b"P6\n99999 99999\n255\n",
            b"P6\n4294967297 1\n255\nabc",
            b"P6\n2 1\n65535\nabcdef",
            b"P6\n-2 1\n255\nabcdef",
        ] {
            assert!(parse_ppm(bad.to_vec()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_no_picture_that_panics(tail: Vec<u8>) {
            let _ = parse_ppm([b"P6\n".as_slice(), &tail].concat());
        }
    }

    #[test]
    fn a_serial_console_with_somebody_on_it_is_left_alone() {
        let row = |state| {
            format!(
                "Num RefCount\n0000: 00000002 00000000 00010000 0001 01 11 /var/run/qemu-server/102.serial0\n0000: 00000003 00000000 00000000 0001 {state} 12 /var/run/qemu-server/102.serial0\n"
            )
        };
        let socket = Path::new("/run/qemu-server/102.serial0");
        assert!(in_use(&row("03"), socket));
        assert!(!in_use(&row("01"), socket));
        assert!(!in_use(&row("03"), Path::new("/run/qemu-server/102.serial")));
    }
}
