//! A tar (POSIX ustar) of regular files, written as it goes: for `--tar` and `bundle export`. Reads none.
//!
//! The same files give the same bytes: owner 0, mode 0600, one time for all of them, the order as given.

use std::io::{self, Read, Write};

const BLOCK: usize = 512;

/// A tar on its way to `to`.
#[derive(Debug)]
pub struct Tar<W: Write> {
    to: W,
    mtime: u64,
}

impl<W: Write> Tar<W> {
    /// Begins one; every member gets this time, in seconds since 1970.
    pub const fn begin(to: W, mtime: u64) -> Self {
        Self { to, mtime }
    }

    /// A file whose bytes are here.
    ///
    /// # Errors
    /// As [`Tar::stream`].
    pub fn file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.stream(path, bytes.len() as u64, &mut { bytes })
    }

    /// A file of exactly this length.
    ///
    /// # Errors
    /// The writer's or the reader's; where the file is shorter than that; where its path fits no header.
    pub fn stream(&mut self, path: &str, length: u64, from: &mut dyn Read) -> io::Result<()> {
        let header = header(path, length, self.mtime).ok_or_else(|| io::Error::other("its path or length fits no tar"))?;
        self.to.write_all(&header)?;
        if io::copy(&mut from.take(length), &mut self.to)? != length {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        let over = usize::try_from(length % BLOCK as u64).unwrap_or(0);
        self.to.write_all([0; BLOCK].get(..(BLOCK - over) % BLOCK).unwrap_or_default())
    }

    /// Two empty blocks: it is whole.
    ///
    /// # Errors
    /// The writer's.
    pub fn end(mut self) -> io::Result<()> {
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.to.flush()
    }
}

/// One header; none where a number or the path is too long for it.
fn header(path: &str, length: u64, mtime: u64) -> Option<[u8; BLOCK]> {
    let (prefix, name) = split(path)?;
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block.get_mut(at..at + bytes.len()).map(|place| place.copy_from_slice(bytes));
    let octal = |number: u64, digits: usize| Some(format!("{number:0digits$o}")).filter(|text| text.len() == digits);
    put(0, name.as_bytes())?;
    put(100, b"0000600\0")?;
    put(108, b"0000000\0")?;
    put(116, b"0000000\0")?;
    put(124, octal(length, 11)?.as_bytes())?;
    put(136, octal(mtime, 11)?.as_bytes())?;
    put(148, b"        ")?; // the checksum counts itself as blanks
    put(156, b"0")?;
    put(257, b"ustar\x0000")?;
    put(345, prefix.as_bytes())?;
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    let sum = format!("{sum:06o}\0 ");
    block.get_mut(148..156)?.copy_from_slice(sum.as_bytes());
    Some(block)
}

/// The path as ustar has it: at most 155 bytes before a slash, at most 100 after it.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return (!path.is_empty()).then_some(("", path));
    }
    let fits = |(prefix, name): &(&str, &str)| prefix.len() <= 155 && (1..=100).contains(&name.len());
    path.match_indices('/').filter_map(|(at, _)| Some((path.get(..at)?, path.get(at + 1..)?))).find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stock(bytes: &[u8], how: &[&str]) -> Vec<u8> {
        let mut child = std::process::Command::new("tar")
            .args(how)
            .args(["-f", "-"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(bytes).unwrap());
            let out = child.wait_with_output().unwrap();
            assert!(out.status.success());
            out.stdout
        })
    }

    #[test]
    fn stock_tar_reads_it_and_the_same_files_give_the_same_bytes() {
        let long = format!("{}/{}", "a".repeat(90), "b".repeat(90));
        let make = || {
            let mut bytes = Vec::new();
            let mut tar = Tar::begin(&mut bytes, 1_795_220_999);
            for (path, content) in [("x/empty", &b""[..]), ("x/one", b"1"), (&long, &[7; 512]), ("x/last", &[8; 1025])] {
                tar.file(path, content).unwrap();
            }
            tar.end().unwrap();
            bytes
        };
        let bytes = make();
        assert_eq!((bytes.len() % BLOCK, &bytes), (0, &make()));
        assert_eq!(String::from_utf8(stock(&bytes, &["-t"])).unwrap(), format!("x/empty\nx/one\n{long}\nx/last\n"));
        assert_eq!(stock(&bytes, &["-x", "--to-stdout"]), [&b"1"[..], &[7; 512], &[8; 1025]].concat());
    }

    #[test]
    fn what_fits_no_header_is_refused_and_a_shrinking_file_is_seen() {
        let mut tar = Tar::begin(Vec::new(), 0);
        for path in ["", &"a".repeat(101), &format!("{}/{}", "a".repeat(156), "b".repeat(99))] {
            assert!(tar.file(path, b"x").is_err(), "{path}");
        }
        assert!(tar.stream("x", 1 << 34, &mut io::empty()).is_err());
        assert!(tar.stream("x", 5, &mut &b"1234"[..]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_content_comes_back(content: Vec<u8>) {
            let mut bytes = Vec::new();
            let mut tar = Tar::begin(&mut bytes, 0);
            tar.file("a/b", &content).unwrap();
            tar.end().unwrap();
            prop_assert_eq!(stock(&bytes, &["-x", "--to-stdout"]), content);
        }
    }
}
