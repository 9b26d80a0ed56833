//! A TOML document whose every value knows its line and its dotted name, so that each refusal can say where.

use super::error::{ConfigError, Problem};
use super::size::{parse_size, show_size};
use super::suggest::nearest;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest piece of the user's text that a message repeats, in characters.
const SHOWN: usize = 80;

/// The file being read.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub file: &'a Path,
    pub text: &'a str,
}

impl<'a> Source<'a> {
    /// Line of a byte of the text, from 1.
    pub fn line(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|b| *b == b'\n').count()
    }

    /// The whole document as a table.
    pub fn root(self, table: &'a DeTable<'a>) -> Table<'a> {
        Table { source: self, field: String::new(), line: 1, entries: table }
    }
}

/// A table and where it stands.
pub struct Table<'a> {
    source: Source<'a>,
    field: String,
    line: usize,
    entries: &'a DeTable<'a>,
}

/// A value and where it stands.
pub struct Value<'a> {
    source: Source<'a>,
    field: String,
    value: &'a Spanned<DeValue<'a>>,
}

/// A place in the file that can be complained about after its value was taken.
#[derive(Clone, Debug)]
pub struct Place {
    pub field: String,
    pub line: usize,
    pub value: Option<String>,
}

impl Place {
    /// The error that says what is wrong here.
    pub fn problem(&self, file: &Path, problem: Problem) -> ConfigError {
        let (field, line, value) = (self.field.clone(), self.line, self.value.clone());
        ConfigError::Field { file: file.to_owned(), line, field, value, problem: Box::new(problem) }
    }
}

fn clip(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= SHOWN && line.len() == text.len() {
        return line.to_owned();
    }
    line.chars().take(SHOWN).chain(['…']).collect()
}

impl<'a> Table<'a> {
    fn child_name(&self, key: &str) -> String {
        let key = clip(&key.escape_debug().to_string());
        if self.field.is_empty() { key } else { format!("{}.{key}", self.field) }
    }

    fn child(&self, key: &str, value: &'a Spanned<DeValue<'a>>) -> Value<'a> {
        Value { source: self.source, field: self.child_name(key), value }
    }

    /// Where the table stands.
    pub fn place(&self) -> Place {
        Place { field: self.field.clone(), line: self.line, value: None }
    }

    /// Where a field of the table stands, or would stand.
    pub fn place_of(&self, key: &str) -> Place {
        match self.get(key) {
            Some(value) => value.place(),
            None => Place { field: self.child_name(key), line: self.line, value: None },
        }
    }

    /// Where a field stands, with `effective` as its value where the file leaves it to the default. `store.disk0` is the field
    /// of a table within.
    pub fn place_at(&self, key: &str, effective: &Path) -> Place {
        let inner = key.split_once('.').and_then(|(table, inner)| {
            let table = self.get(table)?.table("").ok()?;
            Some(table.place_of(inner))
        });
        let mut place = inner.unwrap_or_else(|| self.place_of(key));
        if place.value.is_none() {
            place.value = Some(format!("{:?} (by default)", effective));
        }
        place
    }

    /// The error that says what is wrong with a field, or with its default.
    pub fn problem_at(&self, key: &str, effective: &Path, problem: Problem) -> ConfigError {
        self.place_at(key, effective).problem(self.source.file, problem)
    }

    /// Refuses fields that are not among `known`.
    pub fn only(&self, known: &[&str]) -> Result<(), ConfigError> {
        for key in self.entries.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let line = self.source.line(key.span().start);
            let known_here = known.iter().map(|k| (*k).to_owned()).collect();
            let problem = Problem::Unknown { suggestion: nearest(name, known.iter().copied()), known: known_here };
            return Err(Place { field: self.child_name(name), line, value: None }.problem(self.source.file, problem));
        }
        Ok(())
    }

    /// The value of a field, if the file has it.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.entries.iter().find(|(k, _)| k.get_ref() == key).map(|(_, v)| self.child(key, v))
    }

    /// The value of a field that must be there.
    pub fn need(&self, key: &str, example: &str) -> Result<Value<'a>, ConfigError> {
        let missing = || self.place_of(key).problem(self.source.file, Problem::Missing { example: example.to_owned() });
        self.get(key).ok_or_else(missing)
    }

    /// The tables in this one, by name, in the order of the file.
    pub fn tables(&self, example: &'static str) -> Result<Vec<(String, Table<'a>)>, ConfigError> {
        let mut tables = Vec::new();
        for (key, value) in self.entries {
            let mut table = self.child(key.get_ref(), value).table(example)?;
            table.line = self.source.line(key.span().start);
            tables.push((key.get_ref().to_string(), table));
        }
        Ok(tables)
    }
}

impl<'a> Value<'a> {
    /// Where the value stands.
    pub fn place(&self) -> Place {
        let span = self.value.span();
        let text = self.source.text.get(span.clone()).map(clip);
        let value = text.filter(|_| !self.value.get_ref().is_table());
        Place { field: self.field.clone(), line: self.source.line(span.start), value }
    }

    /// The error that says what is wrong with this value.
    pub fn problem(&self, problem: Problem) -> ConfigError {
        self.place().problem(self.source.file, problem)
    }

    fn wrong_type(&self, expected: &'static str, example: &'static str) -> ConfigError {
        let found = match self.value.get_ref() {
            DeValue::String(_) => "text",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a point",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.problem(Problem::WrongType { found, expected, example })
    }

    /// The value as a table.
    pub fn table(&self, example: &'static str) -> Result<Table<'a>, ConfigError> {
        let entries = self.value.get_ref().as_table().ok_or_else(|| self.wrong_type("a table", example))?;
        let line = self.source.line(self.value.span().start);
        Ok(Table { source: self.source, field: self.field.clone(), line, entries })
    }

    /// The value as text.
    pub fn text(&self, example: &'static str) -> Result<&'a str, ConfigError> {
        self.value.get_ref().as_str().ok_or_else(|| self.wrong_type("text in quotes", example))
    }

    /// The values of a list.
    pub fn list(&self, example: &'static str) -> Result<Vec<Value<'a>>, ConfigError> {
        let array = self.value.get_ref().as_array().ok_or_else(|| self.wrong_type("a list", example))?;
        let item = |(i, value)| Value { source: self.source, field: format!("{}[{i}]", self.field), value };
        Ok(array.iter().enumerate().map(item).collect())
    }

    /// `true` or `false`.
    pub fn flag(&self) -> Result<bool, ConfigError> {
        self.value.get_ref().as_bool().ok_or_else(|| self.wrong_type("true or false", "true"))
    }

    fn unsigned(&self) -> Option<u64> {
        let number = self.value.get_ref().as_integer()?;
        u64::from_str_radix(number.as_str(), number.radix()).ok()
    }

    /// The value as a whole number, if it is one of `allowed`.
    pub fn integer_in(&self, allowed: &[u64]) -> Option<u64> {
        self.unsigned().filter(|n| allowed.contains(n))
    }

    /// A whole number within `range`.
    pub fn number(&self, range: RangeInclusive<u64>, example: &'static str) -> Result<u64, ConfigError> {
        if !self.value.get_ref().is_integer() {
            return Err(self.wrong_type("a whole number", example));
        }
        let out_of_range = Problem::OutOfRange { least: range.start().to_string(), most: range.end().to_string() };
        self.unsigned().filter(|n| range.contains(n)).ok_or_else(|| self.problem(out_of_range))
    }

    /// A whole number of milliseconds within `range`.
    pub fn milliseconds(&self, range: RangeInclusive<u64>) -> Result<u64, ConfigError> {
        if !self.value.get_ref().is_integer() {
            return Err(self.wrong_type("a whole number of milliseconds", "2000"));
        }
        let show = |ms: &u64| format!("{ms} ms");
        let out_of_range = Problem::OutOfRange { least: show(range.start()), most: show(range.end()) };
        self.unsigned().filter(|n| range.contains(n)).ok_or_else(|| self.problem(out_of_range))
    }

    /// A size in bytes within `range`, as text with a unit or as a plain number of bytes; a multiple of 4096.
    pub fn size(&self, range: RangeInclusive<u64>) -> Result<u64, ConfigError> {
        let out_of_range = || Problem::OutOfRange { least: show_size(*range.start()), most: show_size(*range.end()) };
        let bytes = match self.value.get_ref() {
            DeValue::String(text) => parse_size(text).map_err(|e| self.problem(Problem::BadSize(e)))?,
            DeValue::Integer(_) => self.unsigned().ok_or_else(|| self.problem(out_of_range()))?,
            _ => return Err(self.wrong_type("a size", "\"1GiB\"")),
        };
        if !range.contains(&bytes) {
            return Err(self.problem(out_of_range()));
        }
        if !bytes.is_multiple_of(4096) {
            let below = bytes / 4096 * 4096;
            return Err(self.problem(Problem::NotAligned { below, above: below + 4096 }));
        }
        Ok(bytes)
    }

    /// Bytes a second within `range`, as a size and "/s"; or `"none"`.
    pub fn rate(&self, range: RangeInclusive<u64>) -> Result<Option<u64>, ConfigError> {
        let text = self.text("\"10MiB/s\"")?;
        if text == "none" {
            return Ok(None);
        }
        let size = text.strip_suffix("/s").ok_or_else(|| self.problem(Problem::BadRate))?;
        let bytes = parse_size(size.trim_end()).map_err(|e| self.problem(Problem::BadSize(e)))?;
        if !range.contains(&bytes) {
            let show = |bytes: &u64| format!("{}/s", show_size(*bytes));
            return Err(self.problem(Problem::OutOfRange { least: show(range.start()), most: show(range.end()) }));
        }
        Ok(Some(bytes))
    }

    /// One of a few words, with what it stands for.
    pub fn choice<T: Copy>(&self, allowed: &'static [&'static str], meaning: &[T]) -> Result<T, ConfigError> {
        let text = self.text(allowed.first().copied().unwrap_or_default())?;
        let found = allowed.iter().zip(meaning).find(|(word, _)| **word == text);
        found.map(|(_, m)| *m).ok_or_else(|| self.problem(Problem::NotOneOf { allowed }))
    }

    /// An absolute path.
    pub fn path(&self) -> Result<PathBuf, ConfigError> {
        let path = PathBuf::from(self.text("\"/var/lib/understudy\"")?);
        if !path.is_absolute() {
            return Err(self.problem(Problem::RelativePath));
        }
        Ok(path)
    }
}
