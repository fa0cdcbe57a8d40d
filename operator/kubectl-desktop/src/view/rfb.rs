//! As much of RFB 3.8 as a picture and a key press take (RFC 6143).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest banner, name or clipboard that is taken.
const LONGEST_TEXT: u32 = 1 << 20;
/// The largest side of a screen.
const LARGEST_SIDE: u16 = 8192;
/// Blue, green, red and a byte of nothing for a pixel, the least significant first.
const PIXEL_FORMAT: [u8; 16] = [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
/// The screen changed its size: no pixels follow.
const DESKTOP_SIZE: i32 = -223;

/// A client of a screen.
pub struct Rfb<S> {
    stream: S,
    width: u16,
    height: u16,
    pixels: Vec<u8>,
}

/// What stands on a screen: red, green and blue for each pixel, top row first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: u16,
    /// Rows.
    pub height: u16,
    /// Three bytes for each pixel.
    pub rgb: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Rfb<S> {
    /// Greets a server that asks for no password, and shares its screen with those who look already.
    ///
    /// # Errors
    /// What breaks the connection; `InvalidData` for what is not RFB 3.8 without password.
    pub async fn open(mut stream: S) -> io::Result<Self> {
        let mut banner = [0; 12];
        stream.read_exact(&mut banner).await?;
        if !banner.starts_with(b"RFB 003.") {
            return Err(wrong("no RFB server"));
        }
        stream.write_all(b"RFB 003.008\n").await?;
        stream.flush().await?;
        let count = usize::from(stream.read_u8().await?);
        let mut kinds = vec![0; count];
        stream.read_exact(&mut kinds).await?;
        if !kinds.contains(&1) {
            return Err(wrong("the server asks for a password"));
        }
        stream.write_all(&[1]).await?;
        stream.flush().await?;
        if stream.read_u32().await? != 0 {
            return Err(wrong("the server lets nobody in"));
        }
        stream.write_all(&[1]).await?;
        stream.flush().await?;
        let (width, height) = (stream.read_u16().await?, stream.read_u16().await?);
        let mut format = [0; 16];
        stream.read_exact(&mut format).await?;
        skip_text(&mut stream).await?;
        stream.write_all(&[0, 0, 0, 0]).await?;
        stream.write_all(&PIXEL_FORMAT).await?;
        stream.write_all(&[2, 0, 0, 2, 0, 0, 0, 0]).await?;
        stream.write_i32(DESKTOP_SIZE).await?;
        stream.flush().await?;
        let mut rfb = Self { stream, width: 0, height: 0, pixels: vec![] };
        rfb.resize(width, height)?;
        Ok(rfb)
    }

    /// What stands on the screen now.
    ///
    /// # Errors
    /// What breaks the connection, or what no server may say.
    pub async fn picture(&mut self) -> io::Result<Picture> {
        let mut missing = self.ask(false).await?;
        while missing > 0 {
            match self.stream.read_u8().await? {
                0 => match self.update().await? {
                    Some(drawn) => {
                        missing = missing.saturating_sub(drawn);
                        if missing > 0 && drawn > 0 {
                            self.ask(true).await?;
                        }
                    }
                    // Another size: from the beginning.
                    None => missing = self.ask(false).await?,
                },
                1 => {
                    let mut head = [0; 5];
                    self.stream.read_exact(&mut head).await?;
                    let colors = u16::from_be_bytes([head[3], head[4]]);
                    skip(&mut self.stream, u64::from(colors) * 6).await?;
                }
                2 => {}
                3 => {
                    skip(&mut self.stream, 3).await?;
                    skip_text(&mut self.stream).await?;
                }
                other => return Err(wrong(&format!("the server says {other}"))),
            }
        }
        let rgb = self.pixels.chunks_exact(4).flat_map(|pixel| [pixel[2], pixel[1], pixel[0]]).collect();
        Ok(Picture { width: self.width, height: self.height, rgb })
    }

    /// Presses and releases a key (an X keysym; a letter is its own).
    ///
    /// # Errors
    /// What breaks the connection.
    pub async fn press(&mut self, keysym: u32) -> io::Result<()> {
        for down in [1, 0] {
            self.stream.write_all(&[4, down, 0, 0]).await?;
            self.stream.write_u32(keysym).await?;
        }
        self.stream.flush().await
    }

    /// Asks for all of the screen, or for what changed, and returns how many pixels it has.
    async fn ask(&mut self, changes: bool) -> io::Result<u64> {
        let (Self { width, height, .. }, mut request) = (&*self, vec![3, u8::from(changes), 0, 0, 0, 0]);
        request.extend(width.to_be_bytes());
        request.extend(height.to_be_bytes());
        let pixels = u64::from(*width) * u64::from(*height);
        self.stream.write_all(&request).await?;
        self.stream.flush().await?;
        Ok(pixels)
    }

    /// Reads an update and returns how many pixels it had; `None` when the screen has another size now.
    async fn update(&mut self) -> io::Result<Option<u64>> {
        self.stream.read_u8().await?;
        let rectangles = self.stream.read_u16().await?;
        let (mut drawn, mut resized) = (0, false);
        for _ in 0..rectangles {
            let mut place = [0; 4];
            for side in &mut place {
                *side = self.stream.read_u16().await?;
            }
            let [x, y, width, height] = place;
            match self.stream.read_i32().await? {
                DESKTOP_SIZE => {
                    self.resize(width, height)?;
                    resized = true;
                }
                0 => {
                    self.draw(x, y, width, height).await?;
                    drawn += u64::from(width) * u64::from(height);
                }
                other => return Err(wrong(&format!("an encoding that was not asked for: {other}"))),
            }
        }
        Ok((!resized).then_some(drawn))
    }

    async fn draw(&mut self, x: u16, y: u16, width: u16, height: u16) -> io::Result<()> {
        let fits =
            |from: u16, length: u16, whole: u16| from.checked_add(length).is_some_and(|end| end <= whole);
        if !fits(x, width, self.width) || !fits(y, height, self.height) {
            return Err(wrong("pixels beside the screen"));
        }
        for row in y..y + height {
            let start = (usize::from(row) * usize::from(self.width) + usize::from(x)) * 4;
            let pixels = self.pixels.get_mut(start..start + usize::from(width) * 4);
            self.stream.read_exact(pixels.ok_or_else(|| wrong("pixels beside the screen"))?).await?;
        }
        Ok(())
    }

    fn resize(&mut self, width: u16, height: u16) -> io::Result<()> {
        if width > LARGEST_SIDE || height > LARGEST_SIDE {
            return Err(wrong(&format!("a screen of {width} x {height}")));
        }
        (self.width, self.height) = (width, height);
        self.pixels = vec![0; usize::from(width) * usize::from(height) * 4];
        Ok(())
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn skip_text(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let length = stream.read_u32().await?;
    if length > LONGEST_TEXT {
        return Err(wrong(&format!("a text of {length} bytes")));
    }
    skip(stream, length.into()).await
}

async fn skip(stream: &mut (impl AsyncRead + Unpin), count: u64) -> io::Result<()> {
    let skipped = tokio::io::copy(&mut stream.take(count), &mut tokio::io::sink()).await?;
    if skipped == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a server says up to its name, for a screen of 2 x 1.
    const HELLO: &[u8] = b"RFB 003.008\n\x01\x01\0\0\0\0\0\x02\0\x01................\0\0\0\x01q";

    /// The picture that a client gets of a server that says `words` after its greeting.
    fn picture(words: &[u8]) -> io::Result<Picture> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let said = [HELLO, words].concat();
        // Reads come from `said`, writes go nowhere.
        let stream = tokio::io::join(&said[..], tokio::io::sink());
        runtime.block_on(async { Rfb::open(stream).await?.picture().await })
    }

    #[test]
    fn a_picture_is_read_also_behind_a_new_size_a_bell_and_a_clipboard() {
        let all = b"\0\0\0\x01\0\0\0\0\0\x02\0\x01\0\0\0\0\x03\x02\x01.\x06\x05\x04.";
        let plain = picture(all).unwrap();
        assert_eq!(plain, Picture { width: 2, height: 1, rgb: vec![1, 2, 3, 4, 5, 6] });
        let first = b"\x02\x03...\0\0\0\x02ab\0\0\0\x01\0\0\0\0\0\x01\0\x02\xff\xff\xff\x21";
        let tall = b"\0\0\0\x01\0\0\0\0\0\x01\0\x02\0\0\0\0\x03\x02\x01.\x06\x05\x04.";
        let resized = picture(&[&first[..], tall].concat()).unwrap();
        assert_eq!((resized.width, resized.height, resized.rgb), (1, 2, plain.rgb));
        // In two pieces.
        let half = |x: u8| [&b"\0\0\0\x01\0"[..], &[x], b"\0\0\0\x01\0\x01\0\0\0\0\x03\x02\x01."].concat();
        assert_eq!(picture(&[half(0), half(1)].concat()).unwrap().rgb, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn what_no_server_may_say_is_an_error() {
        for words in [
            &b"\0\0\0\x01\0\x01\0\0\0\x02\0\x01\0\0\0\0"[..],
            b"\0\0\0\x01\0\0\0\0\xff\xff\xff\xff\0\0\0\0",
            b"\0\0\0\x01\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\x21",
            b"\0\0\0\x01\0\0\0\0\0\x02\0\x01\0\0\0\x07",
            b"\x03...\xff\xff\xff\xff",
            b"\x09",
            b"",
        ] {
            assert!(picture(words).is_err(), "{words:?}");
        }
    }

    proptest! {
        #[test]
        fn no_server_makes_it_panic(words in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = picture(&words);
        }
    }
}
