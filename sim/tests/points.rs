//! The list of points is what the stack has: each mark stands where the list says, and nowhere else; the book has all of
//! them.

use stack::reached::{By, Reached, Source, When};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// The Rust files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn each_mark_stands_in_the_file_that_the_list_says_and_in_no_other() {
    let stack = root().join("stack/src");
    let mut paths = Vec::new();
    files(&stack, &mut paths);
    let mut places: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in paths {
        let name = path.strip_prefix(&stack).expect("below it").display().to_string();
        let text = std::fs::read_to_string(&path).expect("a file");
        for after in text.split("Reached::").skip(1).filter(|_| name != "reached.rs") {
            let point = after.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default();
            places.entry(point.to_owned()).or_default().insert(name.clone());
        }
    }
    for &point in Reached::ALL {
        let found = places.remove(&format!("{point:?}")).unwrap_or_default();
        let wanted = match point.source() {
            Source::Mark(file) => BTreeSet::from([file.to_owned()]),
            Source::Event(..) => BTreeSet::new(),
        };
        assert_eq!(found, wanted, "the marks of {point:?}");
    }
    assert!(places.is_empty(), "no points: {places:?}");
}

#[test]
fn names_and_numbers_are_their_own() {
    let names: BTreeSet<_> = Reached::ALL.iter().map(|point| point.name()).collect();
    assert_eq!(names.len(), Reached::ALL.len());
    for (number, &point) in Reached::ALL.iter().enumerate() {
        assert_eq!(point as usize, number, "{point:?}");
        let kebab = format!("{point:?}").chars().fold(String::new(), |mut name, letter| {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.extend(letter.to_lowercase());
            name
        });
        assert_eq!(point.name(), kebab);
    }
}

/// A row of the book's table.
fn row(point: Reached) -> String {
    let by = match point.source() {
        Source::Mark(file) => format!("`{file}`"),
        Source::Event(kind, When::Any) => format!("event `{}`", kind.name()),
        Source::Event(kind, When::Detail(detail)) => {
            format!("event `{}`, {} {detail}", kind.name(), kind.operands()[0])
        }
        Source::Event(kind, When::Counted) => {
            format!("event `{}`, {} not 0", kind.name(), kind.operands()[1])
        }
    };
    let end = match point.by() {
        By::Group(group) => format!("`{group}`"),
        By::Nobody(why) => format!("none: {why}"),
    };
    format!("| `{}` | {} | {by} | {end} |", point.name(), point.about())
}

#[test]
fn the_book_has_every_point() {
    let page = std::fs::read_to_string(root().join("docs/points.md")).expect("the page");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let wanted: Vec<String> = Reached::ALL.iter().map(|point| row(*point)).collect();
    assert_eq!(rows, wanted, "the table of docs/points.md should be:\n{}\n", wanted.join("\n"));
}
