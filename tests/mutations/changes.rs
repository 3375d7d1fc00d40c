//! Changes to a file: bits, lengths, cuts, and parts of other files.

use rand::Rng;
use rand::rngs::StdRng;

/// Numbers that a length or a count may claim.
const CLAIMS: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    u64::MAX - 7,
    u64::MAX,
];
/// Numbers as JSON has them.
const WRITTEN: [&[u8]; 10] = [
    b"-1",
    b"0",
    b"1e9",
    b"0.5",
    b"4294967295",
    b"18446744073709551615",
    b"99999999999999999999999",
    b"null",
    b"[]",
    b"\"x\"",
];

/// One of the files, changed in one to four ways.
pub fn changed(files: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut file = files[rng.random_range(0..files.len())].clone();
    for _ in 0..rng.random_range(1..=4) {
        if file.is_empty() {
            break;
        }
        // What describes the rest stands at the beginning; a pickle's is at the end as well.
        let at = match rng.random_range(0..4) {
            0 | 1 => rng.random_range(0..file.len().min(2048)),
            2 => file.len() - 1 - rng.random_range(0..file.len().min(2048)),
            _ => rng.random_range(0..file.len()),
        };
        match rng.random_range(0..8) {
            0 => flip(&mut file, at, rng),
            1 => file[at] = rng.random(),
            2 => claim(&mut file, at, rng),
            3 if rng.random_bool(0.3) => file.truncate(at),
            3 => remove(&mut file, at, rng),
            4 => repeat(&mut file, at, rng),
            5 => splice(&mut file, at, files, rng),
            6 => number(&mut file, at, rng),
            _ => swap(&mut file, at, rng),
        }
    }
    file
}

fn flip(file: &mut [u8], at: usize, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..=8) {
        let near = (at + rng.random_range(0..16)).min(file.len() - 1);
        file[near] ^= 1 << rng.random_range(0..8);
    }
}

/// A number of one to eight bytes, little-endian.
fn claim(file: &mut [u8], at: usize, rng: &mut StdRng) {
    let claimed = CLAIMS[rng.random_range(0..CLAIMS.len())].to_le_bytes();
    let width = [1, 2, 4, 8][rng.random_range(0..4)].min(file.len() - at);
    file[at..at + width].copy_from_slice(&claimed[..width]);
}

fn span(length: usize, at: usize, rng: &mut StdRng) -> std::ops::Range<usize> {
    let most = if rng.random_bool(0.8) { 32 } else { 4096 };
    at..(at + rng.random_range(1..=most)).min(length)
}

fn remove(file: &mut Vec<u8>, at: usize, rng: &mut StdRng) {
    let span = span(file.len(), at, rng);
    file.drain(span);
}

fn repeat(file: &mut Vec<u8>, at: usize, rng: &mut StdRng) {
    let part = file[span(file.len(), at, rng)].to_vec();
    let times = rng.random_range(1..=16);
    file.splice(at..at, part.repeat(times));
}

/// A part of another file, or of the same, in the place of what is there or before it.
fn splice(file: &mut Vec<u8>, at: usize, files: &[Vec<u8>], rng: &mut StdRng) {
    let other = &files[rng.random_range(0..files.len())];
    let from = rng.random_range(0..other.len());
    let part = other[span(other.len(), from, rng)].to_vec();
    let end = match rng.random_bool(0.5) {
        true => (at + part.len()).min(file.len()),
        false => at,
    };
    file.splice(at..end, part);
}

/// The next number in a text becomes another.
fn number(file: &mut Vec<u8>, at: usize, rng: &mut StdRng) {
    let digits = |byte: &u8| byte.is_ascii_digit();
    let Some(start) = file[at..].iter().position(digits).map(|start| at + start) else {
        return;
    };
    let length = file[start..].iter().take_while(|byte| digits(byte)).count();
    let written = WRITTEN[rng.random_range(0..WRITTEN.len())];
    file.splice(start..start + length, written.iter().copied());
}

/// Two stretches of the same length change places.
fn swap(file: &mut [u8], at: usize, rng: &mut StdRng) {
    let other = rng.random_range(0..file.len());
    let (first, second) = (at.min(other), at.max(other));
    let length = rng
        .random_range(1..=64)
        .min(second - first)
        .min(file.len() - second);
    for index in 0..length {
        file.swap(first + index, second + index);
    }
}
