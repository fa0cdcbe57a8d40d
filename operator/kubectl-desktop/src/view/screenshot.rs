//! A picture of a screen as a PNG file.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

use super::rfb::{Picture, Rfb};

/// The picture of the screen behind `stream`, as PNG.
///
/// # Errors
/// What breaks the connection, or is no screen.
pub async fn png(stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<Vec<u8>> {
    encode(&Rfb::open(stream).await?.picture().await?)
}

fn encode(picture: &Picture) -> io::Result<Vec<u8>> {
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, picture.width.into(), picture.height.into());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(io::Error::other)?;
    writer.write_image_data(&picture.rgb).map_err(io::Error::other)?;
    writer.finish().map_err(io::Error::other)?;
    Ok(bytes)
}
