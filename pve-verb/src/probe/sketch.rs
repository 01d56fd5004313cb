//! Whether two screens are alike, without keeping the first: a whole screen may take most of what the helper has of memory.
//!
//! QEMU draws a text screen's blinking cursor by itself, also for a guest that is dead. So two screens that differ by no more than
//! a cursor's strokes are alike; a digit of a clock is taller than that.

use serde::{Deserialize, Serialize};
use std::hash::{DefaultHasher, Hasher};

/// Pixels of a row that are hashed together.
const BLOCK: usize = 16;
/// How many rows a cursor's strokes take: QEMU's has two, in a cell of sixteen.
const ROWS: usize = 4;

/// How two screens compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Likeness {
    /// Every pixel is the same.
    Equal,
    /// They differ in one place that is no larger than a cursor.
    ButACursor,
    /// They differ.
    Different,
}

/// What is kept of a screen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sketch {
    width: usize,
    height: usize,
    /// A hash for each block of each row.
    blocks: Vec<u64>,
}

impl Sketch {
    /// Of a screen with three bytes a pixel, row by row.
    pub(crate) fn of(width: usize, height: usize, pixels: &[u8]) -> Self {
        let hash = |block: &[u8]| {
            let mut hasher = DefaultHasher::new();
            hasher.write(block);
            hasher.finish()
        };
        let blocks = pixels.chunks(width.max(1) * 3).flat_map(|row| row.chunks(BLOCK * 3)).map(hash).collect();
        Self { width, height, blocks }
    }

    /// Compares with a later one.
    pub(crate) fn compared(&self, later: &Self) -> Likeness {
        if (self.width, self.height) != (later.width, later.height) {
            return Likeness::Different;
        }
        let columns = self.width.div_ceil(BLOCK).max(1);
        let differ = |(at, (a, b)): (usize, (&u64, &u64))| (a != b).then_some((at % columns, at / columns));
        let mut changed = self.blocks.iter().zip(&later.blocks).enumerate().filter_map(differ);
        let Some((column, row)) = changed.next() else { return Likeness::Equal };
        // Row by row, so the first is the highest: all others in it or in the next few, in one column of blocks or two that touch.
        let (mut left, mut right) = (column, column);
        for (column, below) in changed {
            (left, right) = (left.min(column), right.max(column));
            if right - left > 1 || below - row >= ROWS {
                return Likeness::Different;
            }
        }
        Likeness::ButACursor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 720;
    const HEIGHT: usize = 400;

    fn with(paint: &[(usize, usize, usize, usize)]) -> Sketch {
        let mut pixels = vec![0; WIDTH * HEIGHT * 3];
        for &(x, y, wide, high) in paint {
            for row in y..y + high {
                pixels[(row * WIDTH + x) * 3..(row * WIDTH + x + wide) * 3].fill(200);
            }
        }
        Sketch::of(WIDTH, HEIGHT, &pixels)
    }

    #[test]
    fn a_cursor_is_no_difference_and_a_digit_is_one() {
        let blank = with(&[]);
        for (paint, expected) in [
            (&[][..], Likeness::Equal),
            (&[(117, 157, 9, 2)], Likeness::ButACursor),
            (&[(0, 0, 9, 2)], Likeness::ButACursor),
            (&[(711, 398, 9, 2)], Likeness::ButACursor),
            (&[(117, 146, 9, 12)], Likeness::Different),
            (&[(117, 157, 9, 2), (117, 300, 9, 2)], Likeness::Different),
            (&[(117, 157, 9, 2), (500, 157, 9, 2)], Likeness::Different),
            (&[(0, 157, 720, 1)], Likeness::Different),
        ] {
            assert_eq!(blank.compared(&with(paint)), expected, "{paint:?}");
            assert_eq!(with(paint).compared(&blank), expected, "{paint:?}");
        }
        assert_eq!(blank.compared(&Sketch::of(HEIGHT, WIDTH, &vec![0; WIDTH * HEIGHT * 3])), Likeness::Different);
    }
}
