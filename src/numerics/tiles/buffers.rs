//! Memory for tiles that is used again.
//!
//! A step takes and gives back the same few sizes again and again. What is taken holds whatever the last user left in
//! it: nobody pays for zeros that are overwritten.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// By length.
static FREE: Mutex<BTreeMap<usize, Vec<Vec<f32>>>> = Mutex::new(BTreeMap::new());

/// Numbers that go back when they are dropped.
#[derive(Debug, Default)]
pub struct Buffer(Vec<f32>);

impl Buffer {
    /// `length` numbers, whatever they are.
    pub fn of(length: usize) -> Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let found = free.get_mut(&length).and_then(Vec::pop);
        drop(free);
        Buffer(found.unwrap_or_else(|| vec![0.0; length]))
    }

    /// `length` zeros.
    pub fn zeros(length: usize) -> Self {
        let mut buffer = Self::of(length);
        buffer.fill(0.0);
        buffer
    }

    /// A copy of `values`.
    pub fn copy(values: &[f32]) -> Self {
        let mut buffer = Self::of(values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            let values = std::mem::take(&mut self.0);
            let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
            free.entry(values.len()).or_default().push(values);
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_taken_again() {
        let length = 987_654;
        let mut buffer = Buffer::zeros(length);
        let place = buffer.as_ptr();
        buffer[3] = 5.0;
        drop(buffer);
        let again = Buffer::of(length);
        assert_eq!(again.as_ptr(), place);
        assert_eq!((again.len(), again[3]), (length, 5.0));
        assert_ne!(Buffer::of(length).as_ptr(), place);
        assert!(Buffer::zeros(length).iter().all(|&value| value == 0.0));
    }
}
