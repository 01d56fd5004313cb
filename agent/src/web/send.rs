//! Files on their way to a browser, piece by piece: a download costs a few kilobytes, however long it is and however slowly it is read.

use std::path::{Path, PathBuf};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Read at once.
const PIECE: usize = 64 * 1024;
/// Pieces that wait for a slow reader.
const WAITING: usize = 1;

/// What is sent.
pub(super) enum Piece {
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many bytes of this file.
    File(PathBuf, u64),
}

impl Piece {
    const fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, bytes) => *bytes,
        }
    }
}

/// A file's length, where it is one.
pub(super) fn length(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len())
}

/// All of these, one after the other.
pub(super) fn all(pieces: Vec<Piece>) -> Response {
    let whole: u64 = pieces.iter().map(Piece::bytes).sum();
    let (tell, told) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        // Who has gone away wants no more; what can't be read breaks the answer off, short of its announced length.
        if let Err(Some(error)) = pass(pieces, &tell).await {
            let _nobody_reads = tell.send(Err(error)).await;
        }
    });
    ([(header::CONTENT_LENGTH, HeaderValue::from(whole))], Body::from_stream(ReceiverStream::new(told))).into_response()
}

/// Nothing in the error: nobody reads any more.
async fn pass(pieces: Vec<Piece>, tell: &mpsc::Sender<std::io::Result<Bytes>>) -> Result<(), Option<std::io::Error>> {
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => tell.send(Ok(bytes.into())).await.map_err(|_| None)?,
            Piece::File(path, bytes) => {
                let mut file = tokio::fs::File::open(path).await?.take(bytes);
                let mut left = bytes;
                while left > 0 {
                    let mut piece = Vec::with_capacity(PIECE);
                    let most = (&mut file).take(PIECE as u64).read_to_end(&mut piece).await?;
                    if most == 0 {
                        return Err(Some(std::io::ErrorKind::UnexpectedEof.into()));
                    }
                    left -= most as u64;
                    tell.send(Ok(piece.into())).await.map_err(|_| None)?;
                }
            }
        }
    }
    Ok(())
}
