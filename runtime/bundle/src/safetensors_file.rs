//! Named tensors and one JSON description in a safetensors file.
//!
//! ```
//! use kilnbox_bundle::{ElementType, NamedTensor, TensorFile};
//!
//! let file = TensorFile {
//!     description: serde_json::json!({"format": "example"}),
//!     tensors: vec![NamedTensor {
//!         name: "weights".to_owned(),
//!         element_type: ElementType::F32,
//!         shape: vec![2],
//!         bytes: [1.0_f32, 2.0].iter().flat_map(|number| number.to_le_bytes()).collect(),
//!     }],
//! };
//! assert_eq!(TensorFile::from_bytes(&file.to_bytes()?)?, file);
//! # Ok::<(), kilnbox_bundle::FormatError>(())
//! ```

use crate::error::FormatError;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, TensorInfo, TensorView};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, Write};

/// The largest header that is read or written, in bytes. A header takes about 100 bytes a tensor, so this holds the
/// largest number of tensors with room for the description.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// The largest number of tensors that is read or written; the largest models of atoms have some thousands.
const MAX_TENSORS: usize = 100_000;
/// The longest name of a tensor, in bytes.
const MAX_NAME_BYTES: usize = 512;
/// The most axes of a tensor; the contract's tensors have no more.
const MAX_AXES: usize = 8;
/// The most texts beside the tensors; we write one.
const MAX_TEXTS: usize = 100;
/// The one key of the header's metadata that we write. One, because the safetensors crate writes several in random
/// order, and the same model must give the same bytes.
const DESCRIPTION_KEY: &str = "kilnbox";
/// The tensors begin at a multiple of this, in bytes.
const ALIGNMENT: usize = 8;

/// The type of a tensor's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// 32-bit floating point.
    F32,
    /// 64-bit floating point.
    F64,
    /// 32-bit signed integer.
    I32,
    /// 64-bit signed integer.
    I64,
    /// One byte a value, 0 or 1.
    Bool,
    /// One byte a value.
    U8,
}

impl ElementType {
    /// The size of one number in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 => 1,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    fn to_dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F64 => Dtype::F64,
            Self::I32 => Dtype::I32,
            Self::I64 => Dtype::I64,
            Self::Bool => Dtype::BOOL,
            Self::U8 => Dtype::U8,
        }
    }

    fn from_dtype(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F64 => Self::F64,
            Dtype::I32 => Self::I32,
            Dtype::I64 => Self::I64,
            Dtype::BOOL => Self::Bool,
            Dtype::U8 => Self::U8,
            _ => return None,
        })
    }
}

/// One tensor: a name, a type, a shape and the numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The name, unique in its file: 1 to 512 bytes, without control characters.
    pub name: String,
    /// The type of the numbers.
    pub element_type: ElementType,
    /// The length of each axis; empty for a single number.
    pub shape: Vec<usize>,
    /// The numbers, row-major, little-endian: the product of `shape` times the size of one number.
    pub bytes: Vec<u8>,
}

impl NamedTensor {
    /// Whether every number is finite; always true for integers.
    ///
    /// Weights that are not finite make a model that predicts nothing, so callers warn about them.
    pub fn is_finite(&self) -> bool {
        match self.element_type {
            ElementType::F32 => {
                self.bytes.as_chunks::<4>().0.iter().all(|bytes| f32::from_le_bytes(*bytes).is_finite())
            }
            ElementType::F64 => {
                self.bytes.as_chunks::<8>().0.iter().all(|bytes| f64::from_le_bytes(*bytes).is_finite())
            }
            _ => true,
        }
    }

    /// Checks that name, shape and bytes fit together.
    fn check(&self) -> Result<(), FormatError> {
        let problem = |detail: String| FormatError::Tensor { tensor: printable(&self.name), detail };
        if self.name.is_empty() || self.name.len() > MAX_NAME_BYTES {
            return Err(problem(format!(
                "its name has {} bytes, and 1 to {MAX_NAME_BYTES} are accepted",
                self.name.len()
            )));
        }
        // `__metadata__` is where safetensors itself keeps the description.
        if self.name.chars().any(char::is_control) || self.name == "__metadata__" {
            return Err(problem("its name is reserved or holds control characters".to_owned()));
        }
        let expected = self
            .shape
            .iter()
            .try_fold(self.element_type.size(), |size, length| size.checked_mul(*length))
            .ok_or_else(|| problem(format!("shape {:?} overflows the size of memory", self.shape)))?;
        if self.bytes.len() != expected {
            return Err(problem(format!(
                "shape {:?} needs {expected} bytes, and there are {}",
                self.shape,
                self.bytes.len()
            )));
        }
        if self.element_type == ElementType::Bool && self.bytes.iter().any(|byte| *byte > 1) {
            return Err(problem("a boolean is neither 0 nor 1".to_owned()));
        }
        Ok(())
    }
}

/// A file that is yet to be written, of tensors that somebody else keeps: they can be most of the memory, and are not copied.
pub(crate) struct LaidOut<'a> {
    /// The length of the description of all tensors, and that description.
    header: Vec<u8>,
    /// The tensors in the order of the file.
    tensors: Vec<&'a NamedTensor>,
}

impl<'a> LaidOut<'a> {
    /// # Errors
    ///
    /// See [`TensorFile::to_bytes`].
    pub(crate) fn new(description: &serde_json::Value, tensors: &'a [NamedTensor]) -> Result<Self, FormatError> {
        check_count(tensors.len())?;
        let mut names = HashSet::new();
        for tensor in tensors {
            tensor.check()?;
            if !names.insert(tensor.name.as_str()) {
                return Err(FormatError::Tensor {
                    tensor: tensor.name.clone(),
                    detail: "there are two tensors of this name".to_owned(),
                });
            }
        }
        // As the safetensors crate orders them: wide types first, so that all are aligned.
        let mut tensors: Vec<&NamedTensor> = tensors.iter().collect();
        tensors.sort_by_key(|tensor| (Reverse(tensor.element_type.to_dtype()), &tensor.name));
        let mut end = 0;
        let infos = tensors.iter().map(|tensor| {
            let start = end;
            end += tensor.bytes.len();
            let (dtype, shape) = (tensor.element_type.to_dtype(), tensor.shape.clone());
            (tensor.name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) })
        });
        let infos = infos.collect();
        let metadata = HashMap::from([(DESCRIPTION_KEY.to_owned(), description.to_string())]);
        let metadata = Metadata::new(Some(metadata), infos).map_err(from_safetensors)?;
        let mut json =
            serde_json::to_vec(&metadata).map_err(|error| FormatError::Description(printable(&error.to_string())))?;
        json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
        let header = [&(json.len() as u64).to_le_bytes()[..], &json].concat();
        header_of(&header, (header.len() + end) as u64)?;
        Ok(Self { header, tensors })
    }

    pub(crate) fn write_to(&self, file: &mut dyn Write) -> io::Result<()> {
        file.write_all(&self.header)?;
        self.tensors.iter().try_for_each(|tensor| file.write_all(&tensor.bytes))
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let parts = std::iter::once(&self.header[..]).chain(self.tensors.iter().map(|tensor| &tensor.bytes[..]));
        parts.collect::<Vec<_>>().concat()
    }
}

/// Named tensors and a JSON description of them.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorFile {
    /// What the tensors are; any JSON.
    pub description: serde_json::Value,
    /// The tensors. They are read back sorted by name, whatever the order in which they were written.
    pub tensors: Vec<NamedTensor>,
}

impl TensorFile {
    /// The file's bytes; the same tensors and description always give the same bytes.
    ///
    /// # Errors
    ///
    /// Refuses what could not be read back: two tensors of one name, bytes that do not fit the shape, more than 100,000
    /// tensors or a header above 16 MiB.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        Ok(LaidOut::new(&self.description, &self.tensors)?.to_bytes())
    }

    /// Checks the beginning of a file that has `size` bytes, as far as can be told without its tensors: `beginning` is the whole file, or at least as much of
    /// it as a header may take.
    ///
    /// # Errors
    ///
    /// See [`TensorFile::from_bytes`].
    pub(crate) fn check_beginning(beginning: &[u8], size: u64) -> Result<(), FormatError> {
        read_header(beginning, size)?.map(drop).ok_or(FormatError::NoDescription)
    }

    /// The longest beginning of a file that [`TensorFile::check_beginning`] looks at, in bytes.
    pub(crate) const MAX_BEGINNING_BYTES: u64 = 8 + MAX_HEADER_BYTES;

    /// Reads what [`TensorFile::to_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// Says whether the bytes are truncated, no safetensors at all, beyond the limits above, or without a description.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let description = read_header(bytes, bytes.len() as u64)?.ok_or(FormatError::NoDescription)?;
        let description = serde_json::from_str(&description)
            .map_err(|error| FormatError::Description(printable(&error.to_string())))?;
        let file = SafeTensors::deserialize(bytes).map_err(from_safetensors)?;
        let mut tensors = file.iter().map(|(name, view)| read_tensor(name, &view)).collect::<Result<Vec<_>, _>>()?;
        tensors.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(Self { description, tensors })
    }
}

fn read_tensor(name: &str, view: &TensorView<'_>) -> Result<NamedTensor, FormatError> {
    let element_type = ElementType::from_dtype(view.dtype())
        .ok_or_else(|| FormatError::ElementType { tensor: printable(name), found: format!("{:?}", view.dtype()) })?;
    let tensor =
        NamedTensor { name: name.to_owned(), element_type, shape: view.shape().to_vec(), bytes: view.data().to_vec() };
    tensor.check()?;
    Ok(tensor)
}

/// The JSON of the header, whose length is checked against our limit and the file before anything is parsed: the safetensors crate itself would accept
/// 100 MB.
fn header_of(bytes: &[u8], size: u64) -> Result<&[u8], FormatError> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(FormatError::Truncated {
            detail: format!("it has {size} bytes, and its first 8 give the length of the header"),
        });
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(FormatError::TooLarge {
            what: "the header's size in bytes".to_owned(),
            found: length,
            limit: MAX_HEADER_BYTES,
        });
    }
    let available = size - 8;
    if length > available {
        return Err(FormatError::Truncated {
            detail: format!("its header has {length} bytes, and only {available} follow"),
        });
    }
    Ok(&rest[..length as usize])
}

/// Reads the header once by our own rules, and keeps the description. The safetensors crate reads it after that: it would take the second of two tensors
/// of one name, and hold a header of any form in memory as a whole before it looks at it.
fn read_header(bytes: &[u8], size: u64) -> Result<Option<String>, FormatError> {
    let mut reader = serde_json::Deserializer::from_slice(header_of(bytes, size)?);
    let mut problem = None;
    let description = HeaderReader(&mut problem).deserialize(&mut reader).and_then(|description| {
        reader.end()?;
        Ok(description)
    });
    match (description, problem) {
        (_, Some(problem)) => Err(problem),
        (Err(error), None) => Err(FormatError::NotSafetensors(printable(&error.to_string()))),
        (Ok(description), None) => Ok(description),
    }
}

/// Goes through a header without keeping more than the names of the tensors; what is wrong with it is left in the reference.
struct HeaderReader<'a>(&'a mut Option<FormatError>);

impl<'de> DeserializeSeed<'de> for HeaderReader<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderReader<'_> {
    type Value = Option<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut refuse = |problem: FormatError| {
            *self.0 = Some(problem);
            A::Error::custom("refused")
        };
        let of = |name: &str, detail: String| FormatError::Tensor { tensor: printable(name), detail };
        let mut names = HashSet::new();
        let mut tensors = 0;
        let mut description = None;
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert(name.clone()) {
                return Err(refuse(of(&name, "there are two tensors of this name".to_owned())));
            }
            if name == "__metadata__" {
                description = map.next_value::<Texts>()?.0;
                continue;
            }
            tensors += 1;
            check_count(tensors).map_err(&mut refuse)?;
            if map.next_value::<TensorEntry>()?.shape.0 > MAX_AXES {
                return Err(refuse(of(&name, format!("it has more than {MAX_AXES} axes"))));
            }
        }
        Ok(description)
    }
}

/// What a header says of one tensor, in form; what it means is the safetensors crate's to check.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the fields are only there to be demanded")]
struct TensorEntry {
    dtype: IgnoredAny,
    shape: Axes,
    data_offsets: (u64, u64),
}

/// The number of axes of a shape.
struct Axes(usize);

impl<'de> Deserialize<'de> for Axes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counter;

        impl<'de> Visitor<'de> for Counter {
            type Value = Axes;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of lengths")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Axes, A::Error> {
                let mut count = 0;
                while sequence.next_element::<u64>()?.is_some() {
                    count += 1;
                }
                Ok(Axes(count))
            }
        }

        deserializer.deserialize_seq(Counter)
    }
}

/// The texts beside the tensors, of which only our description is kept.
struct Texts(Option<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Finder;

        impl<'de> Visitor<'de> for Finder {
            type Value = Texts;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts, A::Error> {
                let mut description = None;
                let mut count = 0;
                while let Some((name, text)) = map.next_entry::<String, String>()? {
                    count += 1;
                    if count > MAX_TEXTS {
                        return Err(A::Error::custom(format_args!("more than {MAX_TEXTS} texts beside the tensors")));
                    }
                    if name == DESCRIPTION_KEY && description.replace(text).is_some() {
                        return Err(A::Error::custom("two descriptions"));
                    }
                }
                Ok(Texts(description))
            }
        }

        deserializer.deserialize_map(Finder)
    }
}

fn check_count(count: usize) -> Result<(), FormatError> {
    if count > MAX_TENSORS {
        return Err(FormatError::TooLarge {
            what: "the number of tensors".to_owned(),
            found: count as u64,
            limit: MAX_TENSORS as u64,
        });
    }
    Ok(())
}

fn from_safetensors(error: SafeTensorError) -> FormatError {
    match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            FormatError::Truncated { detail: "the tensors do not end where the file ends".to_owned() }
        }
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength => {
            FormatError::Truncated { detail: "the header does not end within the file".to_owned() }
        }
        SafeTensorError::InvalidOffset(tensor) => FormatError::Tensor {
            tensor: printable(&tensor),
            detail: "its place in the file overlaps another tensor's or leaves a gap".to_owned(),
        },
        other => FormatError::NotSafetensors(printable(&other.to_string())),
    }
}

/// Text from a file, fit for a message: what cannot be seen is escaped, such as control characters and those that turn the direction of writing, and it
/// is cut to a length that a line can hold.
pub(crate) fn printable(text: &str) -> String {
    const MAX_CHARACTERS: usize = 200;
    let mut printable: String = text
        .chars()
        .take(MAX_CHARACTERS)
        .flat_map(|character| {
            let is_plain = "\"'\\".contains(character) || character.escape_debug().len() == 1;
            if is_plain { vec![character] } else { character.escape_debug().collect::<Vec<_>>() }
        })
        .collect();
    if text.chars().nth(MAX_CHARACTERS).is_some() {
        printable.push('…');
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tensor(name: &str, element_type: ElementType, shape: &[usize], bytes: &[u8]) -> NamedTensor {
        NamedTensor { name: name.to_owned(), element_type, shape: shape.to_vec(), bytes: bytes.to_vec() }
    }

    fn file(tensors: Vec<NamedTensor>) -> TensorFile {
        TensorFile { description: json!({"format": "test", "numbers": [1, 2.5]}), tensors }
    }

    /// A safetensors file of a header written by hand.
    fn raw(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn refusal(bytes: &[u8]) -> String {
        TensorFile::from_bytes(bytes).expect_err("the bytes are refused").to_string()
    }

    #[test]
    fn every_type_comes_back_as_it_was_written() {
        let written = file(vec![
            tensor("a.f64", ElementType::F64, &[1], &1.5_f64.to_le_bytes()),
            tensor("b.i64", ElementType::I64, &[], &7_i64.to_le_bytes()),
            tensor("c.f32", ElementType::F32, &[2, 1], &[0; 8]),
            tensor("d.i32", ElementType::I32, &[0, 5], &[]),
            tensor("e.bool", ElementType::Bool, &[3], &[0, 1, 1]),
            tensor("f.u8", ElementType::U8, &[2], &[9, 255]),
        ]);
        let bytes = written.to_bytes().expect("the file is made");
        assert_eq!(TensorFile::from_bytes(&bytes).expect("the file is read"), written);
    }

    #[test]
    fn the_bytes_are_those_that_the_safetensors_crate_writes() {
        let written = file(vec![
            tensor("z", ElementType::F64, &[1], &1.5_f64.to_le_bytes()),
            tensor("b \"quoted\"", ElementType::F32, &[2, 1], &[0; 8]),
            tensor("a", ElementType::F32, &[], &[1; 4]),
            tensor("a.bool", ElementType::Bool, &[3], &[0, 1, 1]),
            tensor("empty", ElementType::I64, &[0, 5], &[]),
        ]);
        let views = written.tensors.iter().map(|tensor| {
            let dtype = tensor.element_type.to_dtype();
            (tensor.name.as_str(), TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes).expect("a view"))
        });
        let metadata = HashMap::from([(DESCRIPTION_KEY.to_owned(), written.description.to_string())]);
        let theirs = safetensors::serialize(views, Some(metadata)).expect("the crate writes it");
        assert_eq!(written.to_bytes().expect("the file is made"), theirs);
        let mut streamed = Vec::new();
        LaidOut::new(&written.description, &written.tensors)
            .expect("the file is laid out")
            .write_to(&mut streamed)
            .expect("a vector takes all");
        assert_eq!(streamed, theirs);
    }

    #[test]
    fn the_order_of_writing_does_not_change_the_bytes() {
        let a = tensor("a", ElementType::U8, &[1], &[1]);
        let b = tensor("b", ElementType::U8, &[1], &[2]);
        assert_eq!(
            file(vec![a.clone(), b.clone()]).to_bytes().expect("the file is made"),
            file(vec![b, a]).to_bytes().expect("the file is made")
        );
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = file(vec![tensor("a", ElementType::F64, &[2], &[0; 16])]).to_bytes().expect("the file is made");
        for length in 0..bytes.len() {
            let message = refusal(&bytes[..length]);
            assert!(message.contains("truncated"), "at {length} bytes: {message}");
        }
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = file(vec![]).to_bytes().expect("the file is made");
        bytes.push(0);
        assert!(refusal(&bytes).contains("do not end where the file ends"));
    }

    #[test]
    fn a_header_that_claims_too_much_is_refused_before_it_is_read() {
        assert!(refusal(&u64::MAX.to_le_bytes()).contains("at most 16777216 is accepted"));
        assert!(refusal(&(MAX_HEADER_BYTES + 1).to_le_bytes()).contains("at most 16777216 is accepted"));
        assert!(refusal(&MAX_HEADER_BYTES.to_le_bytes()).contains("truncated"));
    }

    #[test]
    fn hostile_headers_are_refused() {
        let described = r#""__metadata__":{"kilnbox":"{}"}"#;
        let cases = [
            ("not json", "", "not in the safetensors format"),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, "1234", "no description by kilnbox"),
            (&format!(r#"{{{described},"a":{{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}}}"#), "12", "type `F16`"),
            (
                &format!(r#"{{{described},"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}}}"#),
                "1234",
                "invalid shape",
            ),
            (
                &format!(
                    r#"{{{described},"a":{{"dtype":"U8","shape":[4294967296,4294967296,16],"data_offsets":[0,4]}}}}"#
                ),
                "1234",
                "overflow",
            ),
            (
                &format!(
                    r#"{{{described},"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"b":{{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}}}"#
                ),
                "1234",
                "overlaps",
            ),
            (
                &format!(
                    r#"{{{described},"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}},"b":{{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}}}"#
                ),
                "1234",
                "leaves a gap",
            ),
            (
                &format!(
                    r#"{{{described},"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#
                ),
                "1234",
                "`a`: there are two tensors of this name",
            ),
            (
                &format!(r#"{{{described},"a":{{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}}}"#),
                "1",
                "more than 8 axes",
            ),
            (
                &format!(r#"{{{described},"a":{{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}}}"#),
                "1",
                "integer `-1`",
            ),
            (&format!(r#"{{{described},"a":{{"dtype":"U7","shape":[1],"data_offsets":[0,1]}}}}"#), "1", "`U7`"),
            (&format!(r#"{{{described},"a":{{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}}}"#), "1", "overlaps"),
            (
                &format!(r#"{{{described},"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551615]}}}}"#),
                "1",
                "invalid shape",
            ),
            (
                &format!(r#"{{{described},"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1],"strides":[1]}}}}"#),
                "1",
                "unknown field `strides`",
            ),
            (r#"{"__metadata__":{"kilnbox":"{}","kilnbox":"{}"}}"#, "", "two descriptions"),
            (&format!("{{{described}}}{{}}"), "", "trailing characters"),
            (
                &format!(r#"{{{described},"a":{{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}}}"#),
                "2",
                "neither 0 nor 1",
            ),
        ];
        for (header, data, expected) in cases {
            let message = refusal(&raw(header, data.as_bytes()));
            assert!(message.contains(expected), "{header}: {message}");
        }
    }

    #[test]
    fn headers_that_fill_memory_are_refused_while_they_are_read() {
        let described = r#"{"__metadata__":{"kilnbox":"{}"}"#;
        let tensors = |count: usize| {
            let entries =
                (0..count).map(|number| format!(r#","{number}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#));
            raw(&format!("{described}{}}}", entries.collect::<String>()), b"")
        };
        assert_eq!(TensorFile::from_bytes(&tensors(MAX_TENSORS)).expect("the file is read").tensors.len(), MAX_TENSORS);
        assert!(
            refusal(&tensors(MAX_TENSORS + 1)).contains("number of tensors is 100001, and at most 100000 is accepted")
        );
        let zeros =
            format!(r#"{described},"a":{{"dtype":"U8","shape":[{}0],"data_offsets":[0,0]}}}}"#, "0,".repeat(8_000_000));
        assert!(refusal(&raw(&zeros, b"")).contains("more than 8 axes"));
        let texts: String = (0..1_000_000).map(|number| format!(r#","{number}":"""#)).collect();
        assert!(
            refusal(&raw(&format!(r#"{{"__metadata__":{{"kilnbox":"{{}}"{texts}}}}}"#), b""))
                .contains("more than 100 texts")
        );
        let deep = format!(r#"{described},"a":{}"#, "[".repeat(1_000_000));
        assert!(refusal(&raw(&deep, b"")).contains("not in the safetensors format"));
    }

    #[test]
    fn what_could_not_be_read_back_is_not_written() {
        let cases = [
            (vec![tensor("a", ElementType::F32, &[2], &[0; 4])], "needs 8 bytes, and there are 4"),
            (vec![tensor("a", ElementType::U8, &[usize::MAX, 2], &[])], "overflows"),
            (vec![tensor("", ElementType::U8, &[], &[0])], "its name has 0 bytes"),
            (vec![tensor("__metadata__", ElementType::U8, &[], &[0])], "reserved"),
            (vec![tensor("a\u{1b}[2J", ElementType::U8, &[], &[0])], r"`a\u{1b}[2J`"),
            (vec![tensor("a", ElementType::U8, &[], &[0]); 2], "two tensors of this name"),
        ];
        for (tensors, expected) in cases {
            let message = file(tensors).to_bytes().expect_err("the tensors are refused").to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_found() {
        assert!(tensor("a", ElementType::F32, &[1], &1.0_f32.to_le_bytes()).is_finite());
        assert!(!tensor("a", ElementType::F32, &[1], &f32::NAN.to_le_bytes()).is_finite());
        assert!(!tensor("a", ElementType::F64, &[1], &f64::INFINITY.to_le_bytes()).is_finite());
        assert!(tensor("a", ElementType::I64, &[1], &[255; 8]).is_finite());
    }
}
