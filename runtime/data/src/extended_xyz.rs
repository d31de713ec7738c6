//! Extended XYZ in ASE's dialect, read and written.
//!
//! A frame is a line with the number of atoms, a line of `key=value` pairs, and a line for each atom whose columns the key `Properties` names.
//! Values are words, numbers, truth values, and arrays: quoted (`"1 2 3"`), in braces (`{1 2 3}`) or as JSON (`[1, 2, 3]`). ASE writes
//! arrays of more than one dimension as `"_JSON [[1, 2], [3, 4]]"`; they are read row by row.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::DataError;
use crate::elements::{LAST_ELEMENT, atomic_number, symbol};

/// The largest file that is read, in bytes.
const LARGEST_FILE: u64 = 8 << 30;
/// The most keys of one frame, and the most names in its `Properties`; real files have some dozens.
const MOST_KEYS: usize = 1000;

/// A value of a frame's second line.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// One number, or several.
    Numbers(Vec<f64>),
    /// One truth value, or several.
    Booleans(Vec<bool>),
    /// Anything else.
    Text(String),
}

/// A column, or several under one name.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// `width` numbers for each atom.
    Numbers {
        /// Numbers for each atom.
        width: usize,
        /// Row-major.
        values: Vec<f64>,
    },
    /// Words or truth values, one for each atom and column.
    Words {
        /// Words for each atom.
        width: usize,
        /// Row-major.
        values: Vec<String>,
    },
}

/// One structure with what is said of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// Atomic numbers.
    pub types: Vec<i32>,
    /// Three numbers for each atom.
    pub positions: Vec<f64>,
    /// Rows are cell vectors; zero where there is none.
    pub cell: [f64; 9],
    /// Along which cell vectors it repeats.
    pub periodic: [bool; 3],
    /// Values of the whole structure, in the order of the file.
    pub info: Vec<(String, Value)>,
    /// Values of atoms, but for symbols and positions, in the order of the file.
    pub arrays: Vec<(String, Column)>,
}

impl Frame {
    /// A value of the whole structure.
    pub fn info(&self, key: &str) -> Option<&Value> {
        self.info.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// Values of atoms.
    pub fn array(&self, key: &str) -> Option<&Column> {
        self.arrays.iter().find(|(known, _)| known == key).map(|(_, column)| column)
    }
}

/// Reads all frames of a file.
///
/// # Errors
/// The file cannot be read, or breaks the format: with the line where it does.
pub fn read(path: &Path) -> Result<Vec<Frame>, DataError> {
    let unreadable = |error: io::Error| DataError::new(format!("`{}` cannot be read: {error}", path.display()));
    let mut file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(DataError::new(format!("`{}` is a folder, expected an extended XYZ file", path.display())));
    }
    // A device has no end, and a pipe may have no writer.
    if !metadata.is_file() {
        return Err(DataError::new(format!("`{}` is a device or a pipe, expected a plain file", path.display())));
    }
    if metadata.len() > LARGEST_FILE {
        let size = metadata.len();
        return Err(DataError::new(format!("`{}` has {size} bytes, at most {LARGEST_FILE} are read", path.display())));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    Read::by_ref(&mut file).take(LARGEST_FILE).read_to_end(&mut bytes).map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1;
        DataError::new(format!("`{}`, line {line}: this is not text in UTF-8, so no extended XYZ file", path.display()))
    })?;
    parse(&text, path)
}

/// Reads all frames of a text; `path` is for messages.
///
/// # Errors
/// The text breaks the format.
pub fn parse(text: &str, path: &Path) -> Result<Vec<Frame>, DataError> {
    let mut lines = text.lines().enumerate().peekable();
    let mut frames = Vec::new();
    while let Some((number, line)) = lines.next() {
        if line.trim().is_empty() {
            match lines.peek() {
                Some((_, next)) if !next.trim().is_empty() => {
                    let message = "an empty line, expected the number of atoms of the next frame";
                    return Err(DataError::on_line(path, frames.len(), number + 1, message));
                }
                _ => continue,
            }
        }
        let frame = frames.len();
        let error = |line: usize, message: String| DataError::on_line(path, frame, line + 1, message);
        let count: usize = line.trim().parse().map_err(|_| {
            error(number, format!("found `{}`, expected the number of atoms of the next frame", shortened(line)))
        })?;
        if count == 0 {
            return Err(error(number, "the frame has no atoms, expected at least one".to_owned()));
        }
        let Some((header_line, header)) = lines.next() else {
            return Err(error(number, "the file ends after the number of atoms".to_owned()));
        };
        let header = Header::parse(header).map_err(|message| error(header_line, message))?;
        let mut atoms =
            Atoms::new(&header.properties, count, text.len()).map_err(|message| error(header_line, message))?;
        for atom in 0..count {
            let Some((line_number, line)) = lines.next() else {
                return Err(error(header_line, format!("the frame has {count} atoms, but the file ends after {atom}")));
            };
            atoms.push(line).map_err(|message| error(line_number, message))?;
        }
        frames.push(Frame {
            types: atoms.types,
            positions: atoms.positions,
            cell: header.cell,
            periodic: header.periodic,
            info: header.info,
            arrays: atoms.arrays,
        });
    }
    if frames.is_empty() {
        return Err(DataError::new(format!("`{}` has no structures", path.display())));
    }
    Ok(frames)
}

fn shortened(text: &str) -> String {
    let text = text.trim();
    let cut: String = text.chars().take(40).collect();
    if cut.len() < text.len() { format!("{cut}...") } else { cut }
}

/// The kind of a column: `S`, `R`, `I` or `L`.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Words,
    Numbers,
}

struct Property {
    name: String,
    kind: Kind,
    width: usize,
}

struct Header {
    cell: [f64; 9],
    periodic: [bool; 3],
    properties: Vec<Property>,
    info: Vec<(String, Value)>,
}

impl Header {
    fn parse(line: &str) -> Result<Self, String> {
        let mut header = Self { cell: [0.0; 9], periodic: [false; 3], properties: Vec::new(), info: Vec::new() };
        let mut said_periodic = None;
        let mut has_cell = false;
        for (key, raw) in key_values(line)? {
            match key.as_str() {
                "Lattice" => {
                    header.cell = match value_of(&raw) {
                        Value::Numbers(numbers) => numbers.try_into().map_err(|numbers: Vec<f64>| {
                            format!("`Lattice` has {} numbers, expected 9: the three cell vectors", numbers.len())
                        })?,
                        _ => return Err("`Lattice` is not 9 numbers".to_owned()),
                    };
                    has_cell = true;
                }
                "pbc" => {
                    said_periodic = Some(match value_of(&raw) {
                        Value::Booleans(flags) if flags.len() == 3 => [flags[0], flags[1], flags[2]],
                        Value::Booleans(flags) if flags.len() == 1 => [flags[0]; 3],
                        Value::Numbers(flags) if flags.len() == 3 => [0, 1, 2].map(|axis: usize| flags[axis] != 0.0),
                        _ => {
                            return Err(format!("`pbc` is `{}`, expected three of `T` and `F`", shortened(raw.text())));
                        }
                    });
                }
                "Properties" => header.properties = properties(raw.text())?,
                _ => header.info.push((key, value_of(&raw))),
            }
        }
        header.periodic = said_periodic.unwrap_or([has_cell; 3]);
        if header.properties.is_empty() {
            header.properties = properties("species:S:1:pos:R:3")?;
        }
        Ok(header)
    }
}

fn properties(text: &str) -> Result<Vec<Property>, String> {
    let fields: Vec<&str> = text.split(':').collect();
    if !fields.len().is_multiple_of(3) {
        return Err(format!("`Properties` is `{}`, expected triples `name:kind:columns`", shortened(text)));
    }
    if fields.len() > 3 * MOST_KEYS {
        return Err(format!("`Properties` has {} names, at most {MOST_KEYS} are read", fields.len() / 3));
    }
    let mut properties: Vec<Property> = Vec::with_capacity(fields.len() / 3);
    for triple in fields.chunks_exact(3) {
        let property = property(triple)?;
        if properties.iter().any(|known| known.name == property.name) {
            return Err(format!("`Properties` names `{}` twice", property.name));
        }
        properties.push(property);
    }
    Ok(properties)
}

/// A name, a kind and a number of columns.
fn property(triple: &[&str]) -> Result<Property, String> {
    let kind = match triple[1] {
        "S" | "L" => Kind::Words,
        "R" | "I" => Kind::Numbers,
        other => {
            return Err(format!("`Properties` gives `{}` the kind `{other}`, expected S, R, I or L", triple[0]));
        }
    };
    // ASE's own names of the arrays are read too.
    let name = match triple[0] {
        "symbols" => "species",
        "positions" => "pos",
        name => name,
    };
    match triple[2].parse() {
        Ok(width @ 1..=100_000) if width == 1 || name != "species" => {
            Ok(Property { name: name.to_owned(), kind, width })
        }
        Ok(1..=100_000) => Err(format!("`Properties` gives `species` {} columns, expected 1", triple[2])),
        _ => Err(format!("`Properties` gives `{name}` `{}` columns, expected a number", shortened(triple[2]))),
    }
}

/// The lines of a frame's atoms, on their way into columns.
struct Atoms<'a> {
    properties: &'a [Property],
    columns: usize,
    types: Vec<i32>,
    positions: Vec<f64>,
    arrays: Vec<(String, Column)>,
}

impl<'a> Atoms<'a> {
    /// `count` is what the file says; space is taken for no more atoms than `bytes`, its size, can hold.
    fn new(properties: &'a [Property], count: usize, bytes: usize) -> Result<Self, String> {
        let has = |names: &[&str]| properties.iter().any(|property| names.contains(&property.name.as_str()));
        if !has(&["species", "Z", "numbers"]) {
            return Err("`Properties` has no `species`".to_owned());
        }
        if !properties
            .iter()
            .any(|property| property.name == "pos" && property.kind == Kind::Numbers && property.width == 3)
        {
            return Err("`Properties` has no `pos:R:3`".to_owned());
        }
        let columns: usize = properties.iter().map(|property| property.width).sum();
        if columns > bytes {
            return Err(format!("`Properties` has {columns} columns, and the whole file {bytes} bytes"));
        }
        // A column takes a character and a space.
        let count = count.min(bytes / (2 * columns) + 1);
        let mut arrays = Vec::new();
        for Property { name, kind, width } in properties.iter().filter(|property| !is_structural(&property.name)) {
            let column = match kind {
                Kind::Numbers => Column::Numbers { width: *width, values: Vec::with_capacity(width * count) },
                Kind::Words => Column::Words { width: *width, values: Vec::with_capacity(width * count) },
            };
            arrays.push((name.clone(), column));
        }
        Ok(Self {
            columns,
            properties,
            types: Vec::with_capacity(count),
            positions: Vec::with_capacity(3 * count),
            arrays,
        })
    }

    fn push(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.split_ascii_whitespace();
        let mut next_array = 0;
        let columns = self.columns;
        let missing = || format!("an atom has {} columns, expected {columns}", line.split_ascii_whitespace().count());
        let known_atoms = self.types.len();
        for property in self.properties {
            let array = (!is_structural(&property.name)).then(|| {
                next_array += 1;
                next_array - 1
            });
            for _ in 0..property.width {
                let word = words.next().ok_or_else(missing)?;
                match (property.name.as_str(), array) {
                    ("species", _) => self.types.push(
                        atomic_number(word)
                            .or_else(|| element(word))
                            .ok_or_else(|| format!("`{}` is not a chemical element", shortened(word)))?,
                    ),
                    ("Z" | "numbers", _) => {
                        let number = element(word).ok_or_else(|| {
                            format!("`{}` is not an atomic number, expected 0 to {LAST_ELEMENT}", shortened(word))
                        })?;
                        // A file may name both: the symbol has been read, or the number is all there is.
                        if self.types.len() == known_atoms {
                            self.types.push(number);
                        }
                    }
                    ("pos", _) => self.positions.push(finite(word, "pos")?),
                    (name, Some(array)) => {
                        match &mut self.arrays[array].1 {
                            Column::Numbers { values, .. } => values.push(number(word).ok_or_else(|| {
                                format!("`{}` in the column `{name}` is not a number", shortened(word))
                            })?),
                            Column::Words { values, .. } => values.push(word.to_owned()),
                        }
                    }
                    _ => {}
                }
            }
        }
        if words.next().is_some() {
            return Err(missing());
        }
        self.types.truncate(known_atoms + 1);
        Ok(())
    }
}

fn is_structural(name: &str) -> bool {
    matches!(name, "species" | "pos" | "Z" | "numbers")
}

/// An atomic number; 0 is a placeholder.
fn element(word: &str) -> Option<i32> {
    word.parse().ok().filter(|number| (0..=LAST_ELEMENT).contains(number))
}

fn finite(word: &str, column: &str) -> Result<f64, String> {
    match number(word) {
        Some(value) if value.is_finite() => Ok(value),
        _ => Err(format!("`{}` in the column `{column}` is not a finite number", shortened(word))),
    }
}

/// A number, also with Fortran's `D` for the exponent.
fn number(word: &str) -> Option<f64> {
    word.parse().ok().or_else(|| {
        let mantissa_and_exponent = word.replacen(['d', 'D'], "e", 1);
        (mantissa_and_exponent.contains('e') && word.bytes().any(|byte| byte.is_ascii_digit()))
            .then(|| mantissa_and_exponent.parse().ok())
            .flatten()
    })
}

fn boolean(word: &str) -> Option<bool> {
    match word {
        "T" | "True" | "true" | "TRUE" => Some(true),
        "F" | "False" | "false" | "FALSE" => Some(false),
        _ => None,
    }
}

/// A value as it stands in the file.
enum Raw {
    /// A bare word.
    Bare(String),
    /// Between quotes, without them.
    Quoted(String),
    /// Between brackets or braces, without them.
    Array(String),
    /// A key that stands alone.
    Absent,
}

impl Raw {
    fn text(&self) -> &str {
        match self {
            Self::Bare(text) | Self::Quoted(text) | Self::Array(text) => text,
            Self::Absent => "",
        }
    }
}

fn value_of(raw: &Raw) -> Value {
    match raw {
        Raw::Absent => Value::Booleans(vec![true]),
        // What is no array after all is the text between the brackets, as if that stood in quotes: it is written in them, and must read the same again.
        Raw::Array(text) => array(text).unwrap_or_else(|| value_of_text(text)),
        Raw::Bare(text) | Raw::Quoted(text) => value_of_text(text),
    }
}

fn value_of_text(text: &str) -> Value {
    let json = text.strip_prefix("_JSON").map_or(text, str::trim_start);
    let value = match json.starts_with('[') {
        true => array(json),
        // Numbers may have commas between them; in a text they are kept, because then `text` is taken as it is.
        false if text.contains(',') => listed(text.split(',').map(str::trim_ascii)),
        false => listed(text.split_ascii_whitespace()),
    };
    value.unwrap_or_else(|| Value::Text(text.to_owned()))
}

/// The numbers or truth values of an array, however it is nested.
fn array(text: &str) -> Option<Value> {
    let is_between = |character: char| character.is_ascii_whitespace() || ",[]{}".contains(character);
    listed(text.split(is_between).filter(|word| !word.is_empty()))
}

/// Truth values or numbers, at least one, if all words are such.
fn listed<'a>(words: impl Iterator<Item = &'a str> + Clone) -> Option<Value> {
    words.clone().next()?;
    let booleans: Option<Vec<bool>> = words.clone().map(boolean).collect();
    booleans.map(Value::Booleans).or_else(|| words.map(number).collect::<Option<_>>().map(Value::Numbers))
}

/// Splits the second line. Keys may be quoted; a key without a value is true.
fn key_values(line: &str) -> Result<Vec<(String, Raw)>, String> {
    let mut rest = line.trim_start();
    let mut pairs: Vec<(String, Raw)> = Vec::new();
    while !rest.is_empty() {
        let (key, after) = if let Some((quote, quoted)) = opening_quote(rest) {
            split_quoted(quoted, quote)?
        } else {
            let end =
                rest.find(|character: char| character == '=' || character.is_ascii_whitespace()).unwrap_or(rest.len());
            (rest[..end].to_owned(), &rest[end..])
        };
        let after_space = after.trim_start();
        let (raw, after) = match after_space.strip_prefix('=') {
            Some(value) => split_value(value.trim_start())?,
            None => (Raw::Absent, after),
        };
        if key.is_empty() {
            return Err(format!("found `{}`, expected `key=value`", shortened(rest)));
        }
        match pairs.iter().position(|(known, _)| *known == key) {
            Some(place) => pairs[place].1 = raw,
            None if pairs.len() == MOST_KEYS => return Err(format!("the frame has more than {MOST_KEYS} keys")),
            None => pairs.push((key, raw)),
        }
        rest = after.trim_start();
    }
    Ok(pairs)
}

fn split_value(rest: &str) -> Result<(Raw, &str), String> {
    if let Some((quote, quoted)) = opening_quote(rest) {
        let (text, after) = split_quoted(quoted, quote)?;
        return Ok((Raw::Quoted(text), after));
    }
    for (open, close) in [('[', ']'), ('{', '}')] {
        if rest.starts_with(open) {
            let mut depth = 0_usize;
            for (at, character) in rest.char_indices() {
                depth += usize::from(character == open);
                depth -= usize::from(character == close);
                if depth == 0 {
                    return Ok((Raw::Array(rest[1..at].to_owned()), &rest[at + 1..]));
                }
            }
            return Err(format!("`{}` has no closing `{close}`", shortened(rest)));
        }
    }
    let end = rest.find(|character: char| character.is_ascii_whitespace()).unwrap_or(rest.len());
    Ok((Raw::Bare(rest[..end].to_owned()), &rest[end..]))
}

/// The quote that a text begins with, and what follows it.
fn opening_quote(rest: &str) -> Option<(char, &str)> {
    ['"', '\''].into_iter().find_map(|quote| rest.strip_prefix(quote).map(|quoted| (quote, quoted)))
}

/// The text up to the closing quote, and what follows it. A backslash keeps the next character.
fn split_quoted(rest: &str, quote: char) -> Result<(String, &str), String> {
    let mut text = String::new();
    let mut characters = rest.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            character if character == quote => return Ok((text, &rest[at + 1..])),
            '\\' => text.extend(characters.next().map(|(_, kept)| kept)),
            _ => text.push(character),
        }
    }
    Err(format!("`{quote}{}` has no closing quote", shortened(rest)))
}

/// Writes one frame as ASE reads it. Numbers are written with as many digits as they need.
///
/// # Errors
/// The target cannot be written to.
pub fn write(target: &mut impl Write, frame: &Frame) -> io::Result<()> {
    let mut text = String::new();
    let _ = writeln!(text, "{}", frame.types.len());
    let has_cell = frame.cell.iter().any(|&value| value != 0.0);
    if has_cell {
        let numbers: Vec<String> = frame.cell.iter().map(f64::to_string).collect();
        let _ = write!(text, "Lattice=\"{}\" ", numbers.join(" "));
    }
    text.push_str("Properties=species:S:1:pos:R:3");
    for (name, column) in &frame.arrays {
        let _ = match column {
            Column::Numbers { width, .. } => write!(text, ":{name}:R:{width}"),
            Column::Words { width, .. } => write!(text, ":{name}:S:{width}"),
        };
    }
    for (key, value) in &frame.info {
        let _ = write!(text, " {}={}", quoted(key), written(value));
    }
    let flags: Vec<&str> = frame.periodic.iter().map(|&flag| if flag { "T" } else { "F" }).collect();
    let _ = writeln!(text, " pbc=\"{}\"", flags.join(" "));
    for (atom, &atomic_type) in frame.types.iter().enumerate() {
        let _ = write!(text, "{:<2}", symbol(atomic_type));
        write_numbers(&mut text, &frame.positions[3 * atom..3 * atom + 3]);
        for (_, column) in &frame.arrays {
            match column {
                Column::Numbers { width, values } => {
                    write_numbers(&mut text, &values[width * atom..width * (atom + 1)])
                }
                Column::Words { width, values } => {
                    for word in &values[width * atom..width * (atom + 1)] {
                        let _ = write!(text, " {word}");
                    }
                }
            }
        }
        text.push('\n');
    }
    target.write_all(text.as_bytes())
}

fn write_numbers(text: &mut String, numbers: &[f64]) {
    for number in numbers {
        let _ = write!(text, " {number:>16}");
    }
}

fn quoted(word: &str) -> String {
    let plain =
        !word.is_empty() && word.chars().all(|character| character.is_alphanumeric() || "_-:/.+".contains(character));
    if plain { word.to_owned() } else { format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")) }
}

fn written(value: &Value) -> String {
    match value {
        Value::Numbers(numbers) if numbers.len() == 1 => numbers[0].to_string(),
        Value::Numbers(numbers) => format!("\"{}\"", numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(" ")),
        Value::Booleans(flags) => {
            let words: Vec<&str> = flags.iter().map(|&flag| if flag { "T" } else { "F" }).collect();
            if let [word] = words[..] { word.to_owned() } else { format!("\"{}\"", words.join(" ")) }
        }
        Value::Text(text) => quoted(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Frame>, String> {
        parse(text, Path::new("data.xyz")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_of_a_value_is_read() {
        let numbers = |values: &[f64]| Value::Numbers(values.to_vec());
        let cases = [
            ("a=1", numbers(&[1.0])),
            ("a=-1.5e-3", numbers(&[-1.5e-3])),
            ("a=1.5D+02", numbers(&[150.0])),
            ("a=\"1 2 3\"", numbers(&[1.0, 2.0, 3.0])),
            ("a={1 2 3}", numbers(&[1.0, 2.0, 3.0])),
            ("a=[1,2, 3]", numbers(&[1.0, 2.0, 3.0])),
            ("a=[[1, 2], [3, 4]]", numbers(&[1.0, 2.0, 3.0, 4.0])),
            ("a = 7", numbers(&[7.0])),
            ("a=T", Value::Booleans(vec![true])),
            ("a=\"T F\"", Value::Booleans(vec![true, false])),
            ("a", Value::Booleans(vec![true])),
            ("a=\"_JSON [[1.0, -2], [3, 4e1]]\"", numbers(&[1.0, -2.0, 3.0, 40.0])),
            ("a=\"_JSON [true, false]\"", Value::Booleans(vec![true, false])),
            ("a='1 2'", numbers(&[1.0, 2.0])),
            ("a=1,2", numbers(&[1.0, 2.0])),
            ("a=\"1, 2\"", numbers(&[1.0, 2.0])),
            ("a=\"x, 2\"", Value::Text("x, 2".into())),
            // A vertical tab is no space, in whichever form the value stands.
            ("a=\"1,\u{b}2\"", Value::Text("1,\u{b}2".into())),
            ("a=[1,\u{b}2]", Value::Text("1,\u{b}2".into())),
            // What only begins like an array is a text, all of it.
            ("a=\"_JSON[[\"", Value::Text("_JSON[[".into())),
            ("a=\"_JSON [x]\"", Value::Text("_JSON [x]".into())),
            ("a=[x y]", Value::Text("x y".into())),
            ("a={_JSON[1}", numbers(&[1.0])),
            ("a=b=c", Value::Text("b=c".into())),
            ("a=word", Value::Text("word".into())),
            ("a=\"two words\"", Value::Text("two words".into())),
            (r#"a="a \" quote""#, Value::Text("a \" quote".into())),
            ("\"a\"=1 b=2", numbers(&[1.0])),
            ("a=0 a=1", numbers(&[1.0])),
            ("a=nan", Value::Numbers(vec![f64::NAN])),
        ];
        for (header, expected) in cases {
            let frames = parsed(&format!("1\n{header}\nH 0 0 0\n")).unwrap();
            let found = frames[0].info("a").unwrap();
            assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{header}");
        }
    }

    #[test]
    fn cell_periodicity_and_columns_are_read() {
        let text = "2\nLattice=\"4 0 0 0 5 0 0 0 6\" Properties=species:S:1:pos:R:3:forces:R:3:tag:I:1:move:L:1 energy=-1.5\n\
                    H 0 0 0 1 2 3 7 T\nO 1 1 1 4 5 6 8 F\n1\nplain comment\nC 1.0 2.0 3.0\n";
        let frames = parsed(text).unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!((frames[0].types.as_slice(), frames[0].periodic), ([1, 8].as_slice(), [true; 3]));
        assert_eq!(frames[0].cell, [4.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 6.0]);
        assert_eq!(
            frames[0].array("forces"),
            Some(&Column::Numbers { width: 3, values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0] })
        );
        assert_eq!(frames[0].array("move"), Some(&Column::Words { width: 1, values: vec!["T".into(), "F".into()] }));
        assert_eq!((frames[1].types.as_slice(), frames[1].periodic), ([6].as_slice(), [false; 3]));
    }

    #[test]
    fn a_broken_file_is_told_where() {
        let cases = [
            ("", "`data.xyz` has no structures"),
            ("two\n", "line 1: found `two`, expected the number of atoms of the next frame"),
            ("-1\n\n", "line 1: found `-1`, expected the number of atoms of the next frame"),
            ("1\n", "line 1: the file ends after the number of atoms"),
            ("2\n\nH 0 0 0\n", "line 2: the frame has 2 atoms, but the file ends after 1"),
            ("1000000000000\n\nH 0 0 0\n", "line 2: the frame has 1000000000000 atoms, but the file ends after 1"),
            ("1\n\nH 0 0\n", "line 3: an atom has 3 columns, expected 4"),
            ("\u{1b}[2J\n", "line 1: found `\\u{1b}[2J`, expected the number of atoms of the next frame"),
            ("1\n\nH 0 0 0 0\n", "line 3: an atom has 5 columns, expected 4"),
            ("1\n\nQq 0 0 0\n", "line 3: `Qq` is not a chemical element"),
            ("1\n\nH 0 0 x\n", "line 3: `x` in the column `pos` is not a finite number"),
            ("1\n\nH 0 0 nan\n", "line 3: `nan` in the column `pos` is not a finite number"),
            ("1\nLattice=\"1 2 3\"\nH 0 0 0\n", "line 2: `Lattice` has 3 numbers, expected 9: the three cell vectors"),
            ("1\npbc=\"maybe\"\nH 0 0 0\n", "line 2: `pbc` is `maybe`, expected three of `T` and `F`"),
            ("0\n\n", "line 1: the frame has no atoms, expected at least one"),
            ("1\n\n255 0 0 0\n", "line 3: `255` is not a chemical element"),
            ("1\n\n-1 0 0 0\n", "line 3: `-1` is not a chemical element"),
            ("1\nProperties=Z:I:1:pos:R:3\n119 0 0 0\n", "line 3: `119` is not an atomic number, expected 0 to 118"),
            ("1\na=\"open\nH 0 0 0\n", "line 2: `\"open` has no closing quote"),
            ("1\na=[1, 2\nH 0 0 0\n", "line 2: `[1, 2` has no closing `]`"),
            ("1\n=1\nH 0 0 0\n", "line 2: found `=1`, expected `key=value`"),
            ("1\nProperties=species:S:1\nH\n", "line 2: `Properties` has no `pos:R:3`"),
            (
                "1\nProperties=species:S\nH\n",
                "line 2: `Properties` is `species:S`, expected triples `name:kind:columns`",
            ),
            ("1\nProperties=species:S:1:pos:R:3:pos:R:3\nH 0 0 0 1 1 1\n", "line 2: `Properties` names `pos` twice"),
            (
                "1\nProperties=species:S:2:pos:R:3\nH H 0 0 0\n",
                "line 2: `Properties` gives `species` 2 columns, expected 1",
            ),
            (
                "1\nProperties=species:S:1:pos:R:3:a:R:0\nH 0 0 0\n",
                "line 2: `Properties` gives `a` `0` columns, expected a number",
            ),
            (
                "1\nProperties=species:S:1:pos:R:3:a:Q:1\nH 0 0 0 1\n",
                "line 2: `Properties` gives `a` the kind `Q`, expected S, R, I or L",
            ),
            (
                // Far more than fits in memory, if the file were believed.
                "1000000000000\nProperties=species:S:1:pos:R:3:a:R:100000\nH 0 0 0\n",
                "frame 0, line 2: `Properties` has 100004 columns, and the whole file 64 bytes",
            ),
            (
                "1000000000000\nProperties=species:S:1:pos:R:3:a:R:50\nH 0 0 0\n",
                "frame 0, line 3: an atom has 4 columns, expected 54",
            ),
            ("1\n\nH 0 0 0\n1\n\nH 0 0\n", "`data.xyz`, frame 1, line 6: an atom has 3 columns, expected 4"),
            ("1\n\nH 0 0 0\n\n1\n\nH 0 0 0\n", "line 4: an empty line, expected the number of atoms of the next frame"),
        ];
        for (text, expected) in cases {
            let message = parsed(text).unwrap_err();
            assert!(message.ends_with(expected), "{text:?}: {message}");
        }
    }

    #[test]
    fn a_line_of_very_many_keys_is_refused_before_they_are_compared() {
        let keys = |count: usize| (0..count).map(|key| format!(" k{key}")).collect::<String>();
        let properties = |count: usize| (0..count).map(|key| format!(":k{key}:R:1")).collect::<String>();
        let zeros = " 0".repeat(MOST_KEYS - 2);
        let cases = [
            (format!("1\n{}\nH 0 0 0\n", keys(MOST_KEYS)), None),
            (format!("1\n{}\nH 0 0 0\n", keys(1_000_000)), Some("the frame has more than 1000 keys")),
            (format!("1\nProperties=species:S:1:pos:R:3{}\nH 0 0 0{zeros}\n", properties(MOST_KEYS - 2)), None),
            (
                format!("1\nProperties=species:S:1:pos:R:3{}\nH 0 0 0\n", properties(1_000_000)),
                Some("`Properties` has 1000002 names, at most 1000 are read"),
            ),
        ];
        for (text, expected) in cases {
            match (parsed(&text), expected) {
                (Ok(_), None) => {}
                (Err(message), Some(expected)) => assert!(message.ends_with(expected), "{message}"),
                (result, expected) => panic!("{expected:?}: {:?}", result.map(|frames| frames.len())),
            }
        }
    }

    #[test]
    fn what_a_message_quotes_cannot_steer_a_terminal() {
        let message = parsed("1\n\n\u{1b}[2J\u{202e}\u{7} 0 0 0\n").unwrap_err();
        assert!(message.ends_with("line 3: `\\u{1b}[2J\\u{202e}\\u{7}` is not a chemical element"), "{message}");
        let long = format!("1\nProperties=species:S:1:pos:R:3:{0}:R:1:{0}:R:1\nH 0 0 0 1 1\n", "x".repeat(100_000));
        assert!(parsed(&long).unwrap_err().len() < 1100);
    }

    #[test]
    fn nothing_in_a_file_makes_the_reader_panic() {
        let text = "2\nLattice=\"4 0 0 0 5 0 0 0 6\" Properties=species:S:1:pos:R:3:f:R:3 a=[[1, 2], [3]] b={T F} c='x' d=\"_JSON [1]\" e= pbc=\"T T F\"\n\
                    H 0 0 0 1 2 3\nO 1 1 1 4 5 \u{e5}\n";
        let alphabet = ['"', '\'', '[', ']', '{', '}', '=', ':', '\\', '\n', ' ', ',', '9', '-', 'T', '\u{e5}', '\0'];
        // Knuth's MMIX generator, the same in every run.
        let mut state = 1_u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        for _ in 0..20_000 {
            let mut characters: Vec<char> = text.chars().collect();
            for _ in 0..=below(6) {
                let at = below(characters.len());
                match below(3) {
                    0 => characters[at] = alphabet[below(alphabet.len())],
                    1 => characters.insert(at, alphabet[below(alphabet.len())]),
                    _ => characters.truncate(at.max(1)),
                }
            }
            // Either it is read or there is a sentence about it.
            if let Err(message) = parsed(&characters.iter().collect::<String>()) {
                assert!(message.starts_with("`data.xyz`"), "{message}");
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let frame = Frame {
            types: vec![1, 29],
            positions: vec![0.1, -2.0, 1.0 / 3.0, 4.0, 5e-12, 6.0],
            cell: [4.0, 0.25, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 6.0],
            periodic: [true, true, false],
            info: vec![
                ("energy".into(), Value::Numbers(vec![-1.0 / 7.0])),
                ("stress".into(), Value::Numbers(vec![0.5; 9])),
                ("odd key".into(), Value::Text("two words".into())),
                ("good".into(), Value::Booleans(vec![false])),
            ],
            arrays: vec![("forces".into(), Column::Numbers { width: 3, values: vec![1.0, 2.5, -3.0, 0.0, 1e-9, 2.0] })],
        };
        let mut bytes = Vec::new();
        write(&mut bytes, &frame).unwrap();
        write(&mut bytes, &frame).unwrap();
        assert_eq!(parsed(&String::from_utf8(bytes).unwrap()).unwrap(), [frame.clone(), frame]);
    }
}
