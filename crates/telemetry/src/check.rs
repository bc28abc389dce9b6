//! Checks of input that find everything that is wrong, not just the first thing.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{FieldError, Problem};

/// Longest name of a volume, port, network or metric label.
pub const NAME_LENGTH_MAX: usize = 63;

/// Collects what is wrong with one input.
#[derive(Debug, Default)]
pub struct Errors {
    list: Vec<FieldError>,
}

impl Errors {
    /// Nothing wrong so far.
    pub fn new() -> Errors {
        Errors::default()
    }

    /// Notes that `value` of `field` is wrong: `detail` says how, `remedy` what to do instead.
    pub fn add(
        &mut self,
        field: impl Into<String>,
        value: impl ToString,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.list.push(FieldError {
            field: field.into(),
            value: value.to_string(),
            detail: detail.into(),
            remedy: remedy.into(),
        });
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What is wrong.
    pub fn list(&self) -> &[FieldError] {
        &self.list
    }

    /// Takes over what another check found.
    pub fn extend(&mut self, errors: impl IntoIterator<Item = FieldError>) {
        self.list.extend(errors);
    }

    /// `value`, or a problem called `title` when anything is wrong.
    pub fn into_result<T>(self, title: impl Into<String>, value: T) -> Result<T, Problem> {
        if self.list.is_empty() { Ok(value) } else { Err(Problem::invalid(title, self.list)) }
    }

    /// Checks a name: `[a-z0-9][a-z0-9._-]{0,62}`. It becomes a file name and a label.
    pub fn name(&mut self, field: &str, value: &str) {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let remedy = "use 1 to 63 of a-z, 0-9, `.`, `_`, `-`, beginning with a letter or digit";
        if !value.starts_with(legal)
            || value.len() > NAME_LENGTH_MAX
            || !value.chars().all(|c| legal(c) || "._-".contains(c))
        {
            self.add(field, value, "not a name", remedy);
        }
    }

    /// Reads a size in bytes as people write it; see [`size`].
    pub fn size(&mut self, field: &str, value: &str) -> Option<u64> {
        size(value).map_err(|detail| self.add(field, value, detail, SIZE_REMEDY)).ok()
    }

    /// Checks that `value` is one of `range`.
    pub fn range<T: PartialOrd + std::fmt::Display + Copy>(
        &mut self,
        field: &str,
        value: T,
        range: std::ops::RangeInclusive<T>,
    ) {
        if !range.contains(&value) {
            let remedy = format!("use {} to {}", range.start(), range.end());
            self.add(field, value, "out of range", remedy);
        }
    }
}

const SIZE_REMEDY: &str = "write bytes, or a number with KiB, MiB, GiB or TiB, such as 4GiB";

/// Reads a size: plain bytes, or a whole number followed by `B`, `KiB`, `MiB`, `GiB` or `TiB`. The error says what is
/// wrong. Decimal units are refused, since half of their users mean the binary ones.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("not a size".to_string());
    }
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        unit => return Err(format!("unknown unit `{unit}`")),
    };
    let number: u64 = number.parse().map_err(|_| "larger than 2^64 bytes".to_string())?;
    number.checked_mul(1 << shift).ok_or_else(|| "larger than 2^64 bytes".to_string())
}

/// Units of sizes, the largest first, as powers of two.
const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];

/// A size as people write it: in the largest unit that divides it.
pub fn show_size(bytes: u64) -> String {
    for (shift, unit) in UNITS {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// A size for a glance: as [`show_size`] where that is short, else three digits of it.
pub fn about_size(bytes: u64) -> String {
    let exact = show_size(bytes);
    let unit = UNITS.into_iter().find(|(shift, _)| bytes >> shift > 0);
    match unit {
        Some((shift, unit)) if exact.len() > "9999KiB".len() => {
            let value = bytes as f64 / (1_u64 << shift) as f64;
            let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
            format!("{value:.digits$}{unit}")
        }
        _ => exact,
    }
}

/// The keys of one JSON (or TOML) table, taken one by one; wrong types and unknown keys are noted together.
pub struct Fields<'a> {
    path: String,
    table: Map<String, Value>,
    known: Vec<&'static str>,
    errors: &'a mut Errors,
}

impl<'a> Fields<'a> {
    /// Reads `value`, which stands at `path` of the input (empty for the whole input).
    pub fn new(path: &str, value: Value, errors: &'a mut Errors) -> Fields<'a> {
        let table = match value {
            Value::Object(table) => table,
            other => {
                errors.add(path, &other, "not a table of keys and values", "give an object");
                Map::new()
            }
        };
        Fields { path: path.to_string(), table, known: Vec::new(), errors }
    }

    /// The name of `key` in messages.
    pub fn field(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }

    /// Where errors go.
    pub fn errors(&mut self) -> &mut Errors {
        self.errors
    }

    /// The value of `key`, if it is there and has the right type; `expected` says in words what that is.
    pub fn optional<T: DeserializeOwned>(&mut self, key: &'static str, expected: &str) -> Option<T> {
        self.known.push(key);
        match self.table.remove(key)? {
            Value::Null => None,
            value => match T::deserialize(&value) {
                Ok(typed) => Some(typed),
                Err(error) => {
                    let field = self.field(key);
                    let shown = value.as_str().map_or_else(|| value.to_string(), str::to_string);
                    self.errors.add(field, shown, error.to_string(), format!("give {expected}"));
                    None
                }
            },
        }
    }

    /// As [`Fields::optional`], but the key must be there.
    pub fn required<T: DeserializeOwned>(&mut self, key: &'static str, expected: &str) -> Option<T> {
        if self.table.get(key).is_none_or(Value::is_null) {
            self.known.push(key);
            self.table.remove(key);
            let field = self.field(key);
            self.errors.add(field, "", "missing", format!("give {expected}"));
            return None;
        }
        self.optional(key, expected)
    }

    /// Notes every key that nobody asked for.
    pub fn finish(self) {
        for (key, value) in &self.table {
            let remedy = format!("the keys are {}", self.known.join(", "));
            let field = self.field(key);
            self.errors.add(field, value, "unknown key", remedy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("7B", 7), ("4KiB", 4096), ("4GiB", 4 << 30), ("1 TiB", 1 << 40)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "GiB", "4GB", "4G", "-1", "1.5GiB", "99999999999999999999", "16777216TiB", "4 4", "0x10"]
        {
            assert!(size(text).is_err(), "{text}");
        }
        for (bytes, text) in
            [(0, "0B"), (513, "513B"), (4096, "4KiB"), (4 << 30, "4GiB"), (3 << 39, "1536GiB")]
        {
            assert_eq!(show_size(bytes), text);
            assert_eq!(size(text), Ok(bytes));
        }
        for (bytes, text) in [
            (0, "0B"),
            (513, "513B"),
            (3 << 39, "1536GiB"),
            (20_834_496 << 10, "19.9GiB"),
            (1_927_360 << 10, "1.84GiB"),
        ] {
            assert_eq!(about_size(bytes), text);
        }
        assert_eq!(about_size(123_456_789_012), "115GiB");
    }

    #[test]
    fn names() {
        let wrong = |name: &str| {
            let mut errors = Errors::new();
            errors.name("name", name);
            !errors.is_empty()
        };
        for name in ["v0", "0", "a.b_c-d", &"x".repeat(63)] {
            assert!(!wrong(name), "{name}");
        }
        for name in ["", ".", "..", "-a", "_a", "a/b", "A", "a b", "ä", "a\n", &"x".repeat(64)] {
            assert!(wrong(name), "{name:?}");
        }
    }

    #[test]
    fn everything_wrong_is_found_at_once() {
        let mut errors = Errors::new();
        let input = json!({"name": 7, "queues": 70_000, "sise": "4GiB", "file": null, "ok": true});
        let mut fields = Fields::new("volumes[0]", input, &mut errors);
        assert_eq!(fields.required::<String>("name", "a text"), None);
        assert_eq!(fields.optional::<u16>("queues", "a number"), None);
        assert_eq!(fields.required::<String>("file", "a path"), None);
        assert_eq!(fields.optional::<bool>("ok", "true or false"), Some(true));
        fields.finish();
        let found: Vec<_> = errors.list().iter().map(|e| (e.field.as_str(), e.value.as_str())).collect();
        assert_eq!(
            found,
            [
                ("volumes[0].name", "7"),
                ("volumes[0].queues", "70000"),
                ("volumes[0].file", ""),
                ("volumes[0].sise", "\"4GiB\""),
            ]
        );
        let problem = errors.into_result("the input is wrong", ()).unwrap_err();
        assert_eq!((problem.status, problem.errors.len()), (400, 4));
    }
}
