//! A guest's screen as a picture.

use std::fs::{self, File};
use std::io::{BufWriter, Cursor};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use crate::libvirt_host::LibvirtHost;
use crate::node::Node;

/// A libvirt that runs guests.
pub trait Virsh {
    /// Runs `virsh` with it and returns its standard output.
    fn virsh(&self, arguments: &[&str]) -> Result<String>;
}

impl Virsh for LibvirtHost {
    fn virsh(&self, arguments: &[&str]) -> Result<String> {
        self.virsh(arguments.iter().copied())
    }
}

impl Virsh for Node {
    fn virsh(&self, arguments: &[&str]) -> Result<String> {
        self.virsh(arguments.iter().copied())
    }
}

/// A screenshot: 8 bits each of red, green and blue per pixel, top row first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Screen {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Screen {
    /// Takes a picture of the screen of a domain.
    pub fn of(host: &impl Virsh, domain: &str) -> Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        let path = file.path().to_str().context("the path of a temporary file is text")?;
        host.virsh(&["screenshot", domain, path])?;
        Self::read(&fs::read(path)?)
    }

    /// Reads a picture in either format that QEMU gives: PNG, or PPM from one without libpng.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        if bytes.starts_with(b"\x89PNG") { Self::from_png(bytes) } else { Self::from_ppm(bytes) }
    }

    /// Reads a PNG without palette and without transparency.
    fn from_png(bytes: &[u8]) -> Result<Self> {
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info()?;
        let mut pixels = vec![0; reader.output_buffer_size().context("the picture is too large")?];
        let info = reader.next_frame(&mut pixels)?;
        let plain = (info.color_type, info.bit_depth) == (png::ColorType::Rgb, png::BitDepth::Eight);
        ensure!(plain, "the picture is no 8-bit RGB, but {:?} {:?}", info.bit_depth, info.color_type);
        pixels.truncate(info.buffer_size());
        Ok(Self { width: info.width, height: info.height, pixels })
    }

    /// Reads a binary PPM.
    fn from_ppm(bytes: &[u8]) -> Result<Self> {
        let mut rest = bytes;
        let mut word = || -> Result<&str> {
            while let Some((first, tail)) = rest.split_first() {
                match first {
                    b'#' => rest = tail.splitn(2, |byte| *byte == b'\n').nth(1).unwrap_or_default(),
                    byte if byte.is_ascii_whitespace() => rest = tail,
                    _ => break,
                }
            }
            let end = rest
                .iter()
                .position(u8::is_ascii_whitespace)
                .context("the header of the picture ends early")?;
            let (word, tail) = rest.split_at(end);
            rest = tail;
            Ok(std::str::from_utf8(word)?)
        };
        ensure!(word()? == "P6", "the picture is no binary PPM");
        let (width, height): (u32, u32) = (word()?.parse()?, word()?.parse()?);
        ensure!(word()? == "255", "the picture has other than 8 bits per color");
        let size = u128::from(width) * u128::from(height) * 3;
        // One byte of white space stands between header and pixels.
        let pixels = rest.get(1..).unwrap_or_default().to_vec();
        ensure!(
            pixels.len() as u128 == size,
            "{width}x{height} pixels need {size} bytes, not {}",
            pixels.len()
        );
        Ok(Self { width, height, pixels })
    }

    /// Writes the picture as a PNG file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut encoder = png::Encoder::new(BufWriter::new(file), self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header()?.write_image_data(&self.pixels)?;
        Ok(())
    }

    /// How many pixels are not of the color of the first one.
    pub fn painted(&self) -> usize {
        let Some(ground) = self.pixels.get(..3) else { return 0 };
        self.pixels.chunks_exact(3).filter(|pixel| *pixel != ground).count()
    }

    /// How many pixels differ; all of them when the sizes do.
    fn difference(&self, other: &Self) -> usize {
        if (self.width, self.height) != (other.width, other.height) {
            return self.pixels.len() / 3;
        }
        let pairs = self.pixels.chunks_exact(3).zip(other.pixels.chunks_exact(3));
        pairs.filter(|(one, two)| one != two).count()
    }

    /// Waits until something stands on the screen and only a cursor still moves, at most `limit`,
    /// and returns what stands there then.
    pub async fn settled(host: &impl Virsh, domain: &str, limit: Duration) -> Result<Self> {
        const CURSOR: usize = 256;
        let start = Instant::now();
        let mut before = Self::of(host, domain)?;
        loop {
            sleep(Duration::from_secs(1)).await;
            let now = Self::of(host, domain)?;
            if start.elapsed() > limit || (now.painted() > 500 && now.difference(&before) <= CURSOR) {
                return Ok(now);
            }
            before = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ppm_with_a_comment_is_read() {
        let screen = Screen::from_ppm(b"P6\n# by hand\n2 1\n255\n\x00\x00\x00\xff\x00\x00").unwrap();
        assert_eq!((screen.width, screen.height, screen.painted()), (2, 1, 1));
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let screen = Screen { width: 2, height: 1, pixels: vec![1, 2, 3, 4, 5, 6] };
        let file = tempfile::NamedTempFile::new().unwrap();
        screen.save(file.path()).unwrap();
        assert_eq!(Screen::read(&fs::read(file.path()).unwrap()).unwrap(), screen);
    }

    #[test]
    fn a_broken_ppm_is_an_error() {
        for bytes in [
            &b""[..],
            b"P6",
            b"P6 2 2 255 ",
            b"P5 1 1 255 abc",
            b"P6 1 1 65535 abcdef",
            b"P6 4294967295 4294967295 255 a",
        ] {
            assert!(Screen::from_ppm(bytes).is_err(), "{bytes:?}");
        }
    }
}
