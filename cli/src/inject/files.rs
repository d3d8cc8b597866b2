//! Finds and reads manifests: files, directories, standard input.

use std::{
    fs,
    io::{Read, stdin},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// A manifest, and what to call it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// More than this is no manifest.
const MOST: u64 = 64 << 20;

/// All files in the order given, those of a directory by name.
pub(crate) fn read(paths: &[PathBuf], recursive: bool) -> Result<Vec<File>> {
    let mut files = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            files.push(File { name: "standard input".to_owned(), text: text("standard input", stdin().lock())? });
        } else if path.is_dir() {
            let found = manifests(path, recursive)?;
            if found.is_empty() {
                bail!(
                    "{}: there is no .yaml, .yml or .json in it{}",
                    path.display(),
                    if recursive { "" } else { "; with -R its directories are searched too" }
                );
            }
            for file in found {
                files.push(open(&file)?);
            }
        } else {
            files.push(open(path)?);
        }
    }
    Ok(files)
}

fn open(path: &Path) -> Result<File> {
    let name = path.display().to_string();
    let file = fs::File::open(path).with_context(|| name.clone())?;
    Ok(File { text: text(&name, file)?, name })
}

fn text(name: &str, from: impl Read) -> Result<String> {
    let mut text = String::new();
    from.take(MOST + 1).read_to_string(&mut text).with_context(|| name.to_owned())?;
    if text.len() as u64 > MOST {
        bail!("{name}: longer than {} MB, which no manifest is", MOST >> 20);
    }
    Ok(text)
}

fn manifests(directory: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        // A link to a directory could lead round in circles.
        if path.is_dir() && recursive && !path.is_symlink() {
            found.extend(manifests(&path, recursive)?);
        } else if path.is_file()
            && path.extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known))
        {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_by_name_and_deeper_only_if_asked() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str| fs::write(dir.path().join(name), name).expect("written");
        fs::create_dir(dir.path().join("deep")).expect("made");
        for name in ["b.yaml", "a.json", "c.yml", "notes.txt", "deep/d.yaml"] {
            write(name);
        }
        let texts = |recursive| {
            let files = read(&[dir.path().to_owned()], recursive).expect("read");
            files.into_iter().map(|file| file.text).collect::<Vec<_>>()
        };
        assert_eq!(texts(false), ["a.json", "b.yaml", "c.yml"]);
        assert_eq!(texts(true), ["a.json", "b.yaml", "c.yml", "deep/d.yaml"]);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = format!("{:#}", read(&[dir.path().to_owned()], false).expect_err("empty"));
        assert!(error.contains("there is no .yaml, .yml or .json in it; with -R"), "{error}");
        let missing = dir.path().join("missing.yaml");
        let error = format!("{:#}", read(&[missing], false).expect_err("missing"));
        assert!(error.contains("missing.yaml: No such file"), "{error}");
    }
}
