//! The `.pt` files of released checkpoints: a zip archive as `torch.save` writes it, holding one plain
//! dictionary from names to tensors.
//!
//! A pickle is a program. `program` runs only the instructions and knows only the names that a dictionary of
//! tensors needs, so nothing in the file can choose what is executed; and no size in it is believed before it
//! has been compared with the file's length. The tensors of all views together may take at most
//! `VIEWS_PER_BYTE` times the file's length, since several names may share one storage.
//!
//! Archive: `<prefix>/data.pkl` (the program), `<prefix>/data/<key>` (one storage each, stored uncompressed,
//! little-endian), `<prefix>/byteorder`. A view is a storage, an offset, a shape and strides, all counted in
//! elements. See `torch/_utils.py::_rebuild_tensor_v2` in PyTorch.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use candle_core::{Device, Tensor};
use zip::{CompressionMethod, ZipArchive};

use self::program::{Storage, View};
use super::tensors::{FloatPrecision, convert, element_count};
use super::{ArtifactError, regular};

mod program;

/// The longest program that is run; a real one takes about a hundred bytes a tensor.
const LONGEST_PROGRAM: u64 = 8 << 20;
/// How much larger than the file its tensors may be together.
const VIEWS_PER_BYTE: u64 = 2;

/// Reads the tensors of a `.pt` file by name. Floating-point tensors become f32; the others keep their type
/// (booleans become u8).
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, ArtifactError> {
    let (file, file_length) = regular::open(path)?;
    let zip = ZipArchive::new(BufReader::new(file)).map_err(|error| {
        let problem = format!("is no zip file as torch.save writes it: {error}");
        ArtifactError::damaged(path, "the archive", problem)
    })?;
    let mut archive = Archive::new(path, file_length, zip)?;
    archive.check_byte_order()?;
    let program = archive.read_entry("data.pkl", LONGEST_PROGRAM)?;
    let views = program::run(&program)
        .map_err(|problem| ArtifactError::damaged(path, archive.name("data.pkl"), problem))?;
    let by_storage = group_by_storage(path, file_length, views)?;
    let mut tensors = BTreeMap::new();
    for StorageViews { storage, views } in by_storage {
        let bytes = archive.read_storage(&storage)?;
        for (name, view) in views {
            let place = ArtifactError::tensor(path, &name);
            let bytes = view_bytes(&bytes, &view);
            let tensor =
                Tensor::from_raw_buffer(&bytes, view.storage.dtype, &view.shape, &Device::Cpu)
                    .and_then(|tensor| convert(tensor, FloatPrecision::Single))
                    .map_err(place)?;
            tensors.insert(name, tensor);
        }
    }
    Ok(tensors)
}

/// A storage and the tensors that are views of it, by name.
struct StorageViews {
    storage: Storage,
    views: Vec<(String, View)>,
}

/// Checks every view against its storage and the budget, and gathers the views of each storage, so that it is
/// read once.
fn group_by_storage(
    path: &Path,
    file_length: u64,
    views: Vec<(String, View)>,
) -> Result<Vec<StorageViews>, ArtifactError> {
    let mut budget = file_length.saturating_mul(VIEWS_PER_BYTE);
    let mut by_key: BTreeMap<String, StorageViews> = BTreeMap::new();
    for (name, view) in views {
        let size =
            check_view(&view).map_err(|problem| ArtifactError::damaged(path, &name, problem))?;
        budget = budget.checked_sub(size).ok_or_else(|| {
            let problem = format!(
                "the tensors up to here take over {VIEWS_PER_BYTE} times the file's length"
            );
            ArtifactError::damaged(path, &name, problem)
        })?;
        let storage = &view.storage;
        let known = by_key
            .entry(storage.key.to_string())
            .or_insert_with(|| StorageViews {
                storage: storage.clone(),
                views: Vec::new(),
            });
        if known.storage != *storage {
            let problem = format!(
                "says storage {} holds {} {:?}; another tensor says {} {:?}",
                storage.key, storage.count, storage.dtype, known.storage.count, known.storage.dtype
            );
            return Err(ArtifactError::damaged(path, &name, problem));
        }
        known.views.push((name, view));
    }
    Ok(by_key.into_values().collect())
}

/// The bytes that a view's tensor takes, or why the view does not fit its storage.
fn check_view(view: &View) -> Result<u64, String> {
    let storage = &view.storage;
    let count = element_count(&view.shape, storage.count).ok_or_else(|| {
        format!(
            "has shape {:?}, more than the {} elements of its storage",
            view.shape, storage.count
        )
    })?;
    let last = view
        .shape
        .iter()
        .zip(&view.strides)
        .try_fold(view.offset, |last, (&size, &stride)| {
            last.checked_add(size.saturating_sub(1).checked_mul(stride)?)
        });
    let fits = match last {
        Some(last) => last < storage.count || (count == 0 && view.offset <= storage.count),
        None => false,
    };
    if !fits {
        return Err(format!(
            "offset {}, shape {:?} and strides {:?} reach beyond the {} elements of its storage",
            view.offset, view.shape, view.strides, storage.count
        ));
    }
    let size = count.checked_mul(storage.dtype.size_in_bytes());
    size.map(|size| size as u64)
        .ok_or_else(|| format!("shape {:?} is too large", view.shape))
}

/// The elements of a checked view, in row-major order.
fn view_bytes<'a>(storage: &'a [u8], view: &View) -> std::borrow::Cow<'a, [u8]> {
    let element = view.storage.dtype.size_in_bytes();
    let count: usize = view.shape.iter().product();
    let mut contiguous = 1;
    let mut is_contiguous = true;
    for (&size, &stride) in view.shape.iter().zip(&view.strides).rev() {
        is_contiguous &= size == 1 || stride == contiguous;
        contiguous *= size;
    }
    if is_contiguous || count == 0 {
        let start = if count == 0 { 0 } else { view.offset * element };
        return storage[start..start + count * element].into();
    }
    let mut bytes = Vec::with_capacity(count * element);
    let mut index = vec![0; view.shape.len()];
    for _ in 0..count {
        let position: usize = index.iter().zip(&view.strides).map(|(i, s)| i * s).sum();
        let start = (view.offset + position) * element;
        bytes.extend_from_slice(&storage[start..start + element]);
        for (axis, position) in index.iter_mut().enumerate().rev() {
            *position += 1;
            if *position < view.shape[axis] {
                break;
            }
            *position = 0;
        }
    }
    bytes.into()
}

/// The zip archive of one file, whose entries together may not be larger than the file.
struct Archive<'a> {
    path: &'a Path,
    zip: ZipArchive<BufReader<File>>,
    /// The directory in the archive that holds all of torch's entries.
    prefix: String,
    /// The bytes that may still be read.
    budget: u64,
}

impl<'a> Archive<'a> {
    fn new(
        path: &'a Path,
        file_length: u64,
        zip: ZipArchive<BufReader<File>>,
    ) -> Result<Self, ArtifactError> {
        let programs: Vec<String> = zip
            .file_names_raw()
            .filter_map(|name| {
                Some(
                    std::str::from_utf8(name)
                        .ok()?
                        .strip_suffix("data.pkl")?
                        .to_owned(),
                )
            })
            .collect();
        let [prefix] = programs.as_slice() else {
            let problem = format!(
                "holds {} entries named data.pkl; torch.save writes one",
                programs.len()
            );
            return Err(ArtifactError::damaged(path, "the archive", problem));
        };
        let prefix = prefix.clone();
        Ok(Archive {
            path,
            zip,
            prefix,
            budget: file_length,
        })
    }

    fn name(&self, entry: &str) -> String {
        format!("{}{entry}", self.prefix)
    }

    /// Old files have no such entry and are little-endian.
    fn check_byte_order(&mut self) -> Result<(), ArtifactError> {
        let name = self.name("byteorder");
        if self.zip.index_for_name(&name).is_none() {
            return Ok(());
        }
        let order = self.read_entry("byteorder", 16)?;
        if order != b"little" {
            let problem = format!(
                "is {:?}; only \"little\" is read",
                String::from_utf8_lossy(&order)
            );
            return Err(ArtifactError::damaged(self.path, name, problem));
        }
        Ok(())
    }

    fn read_storage(&mut self, storage: &Storage) -> Result<Vec<u8>, ArtifactError> {
        let entry = format!("data/{}", storage.key);
        let bytes = self.read_entry(&entry, u64::MAX)?;
        if storage.count.checked_mul(storage.dtype.size_in_bytes()) != Some(bytes.len()) {
            let problem = format!(
                "has {} bytes; the program says it holds {} {:?}",
                bytes.len(),
                storage.count,
                storage.dtype
            );
            return Err(ArtifactError::damaged(
                self.path,
                self.name(&entry),
                problem,
            ));
        }
        Ok(bytes)
    }

    /// Reads one entry, its checksum included.
    fn read_entry(&mut self, entry: &str, limit: u64) -> Result<Vec<u8>, ArtifactError> {
        let name = self.name(entry);
        let path = self.path;
        let damaged = |problem: String| ArtifactError::damaged(path, &name, problem);
        let index = self
            .zip
            .index_for_name(&name)
            .ok_or_else(|| damaged("is not in the archive".to_owned()))?;
        let file = self
            .zip
            .by_index(index)
            .map_err(|error| damaged(error.to_string()))?;
        if file.compression() != CompressionMethod::Stored || file.encrypted() {
            return Err(damaged(
                "is compressed or encrypted; torch.save stores it plainly".to_owned(),
            ));
        }
        let size = file.size();
        if size > self.budget || size > limit {
            let budget = self.budget.min(limit);
            return Err(damaged(format!(
                "claims {size} bytes; at most {budget} can be there"
            )));
        }
        self.budget -= size;
        let mut bytes = Vec::with_capacity(size as usize);
        // One byte more than it claims: reaching the end is what makes the archive compare the checksum.
        file.take(size.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| damaged(error.to_string()))?;
        if bytes.len() as u64 != size {
            return Err(damaged(format!(
                "claims {size} bytes and has {}",
                bytes.len()
            )));
        }
        Ok(bytes)
    }
}
