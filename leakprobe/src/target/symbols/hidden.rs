//! Allocators in a stripped program, whose functions have lost their names: told by the texts of their messages.

use memchr::memmem::Finder;

use super::{CHUNK, Elf, ObjectError, ReadAt, stream};

/// A family, and what stands in each of its releases, and in nobody else's.
const TEXTS: [(&str, &[u8]); 4] = [
    ("mimalloc", b"mimalloc: warning: "),
    ("jemalloc", b"<jemalloc>: "),
    ("tcmalloc", b"TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD"),
    ("tcmalloc", b"tcmalloc: large alloc"),
];

/// Bytes of a file that are searched.
const MAX_BYTES: u64 = 512 << 20;

/// What a program is that has no full symbol table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stripped {
    /// The families whose texts stand in it, each once.
    pub families: Vec<&'static str>,
}

/// What a stripped program may hide; `None` for one that is not stripped.
///
/// # Errors
/// When it is no object for this machine, is damaged, or can't be read.
pub fn stripped<R: ReadAt + ?Sized>(file: &R, len: u64) -> Result<Option<Stripped>, ObjectError> {
    let elf = Elf::parse(file)?;
    if elf.full_symbols()?.is_some() {
        return Ok(None);
    }
    let finders = TEXTS.map(|(family, text)| (family, Finder::new(text)));
    let longest = TEXTS.iter().map(|(_, text)| text.len()).max().unwrap_or(0);
    let (mut families, mut window) = (Vec::new(), Vec::with_capacity(longest + CHUNK));
    stream(file, 0, len.min(MAX_BYTES), |chunk| {
        // The end of the chunk before stays in front: a text may lie across.
        window.drain(..window.len().saturating_sub(longest));
        window.extend_from_slice(chunk);
        for (family, finder) in &finders {
            if !families.contains(family) && finder.find(&window).is_some() {
                families.push(*family);
            }
        }
        true
    })?;
    Ok(Some(Stripped { families }))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::target::testing::Folder;

    #[test]
    fn texts_of_an_allocator_tell_what_a_stripped_program_hides() {
        let folder = Folder::new();
        let source = "const char *volatile text = \"<jemalloc>: Error\"; int main(void) { return !text; }";
        let of = |options: &[&str], source: &str| {
            let path = folder.compile("program", source, options);
            let file = File::open(&path).expect("readable");
            stripped(&file, file.metadata().expect("there").len()).expect("an ELF file")
        };
        assert_eq!(of(&["-s"], source), Some(Stripped { families: vec!["jemalloc"] }));
        assert_eq!(of(&["-s"], "int main(void) { return 0; }"), Some(Stripped::default()));
        assert_eq!(of(&[], source), None);
    }

    #[test]
    fn a_text_may_lie_across_two_pieces() {
        let folder = Folder::new();
        let source = |before: usize| {
            format!(
                "__attribute__((aligned(4096))) const char text[] = {{[{before}] = '<', 'j','e','m','a','l','l','o','c','>',':',' '}}; \
                 int main(void) {{ return text[0]; }}"
            )
        };
        let path = folder.compile("across", &source(CHUNK - 4096 * 3), &["-s"]);
        let bytes = std::fs::read(&path).expect("readable");
        let at = bytes.windows(12).position(|window| window == b"<jemalloc>: ").expect("the text");
        // Moved on until it lies across the first piece's end.
        let path = folder.compile("across", &source(CHUNK - 4096 * 3 + CHUNK - 5 - at % CHUNK), &["-s"]);
        let file = File::open(&path).expect("readable");
        let found = stripped(&file, file.metadata().expect("there").len()).expect("an ELF file");
        assert_eq!(found.expect("stripped").families, ["jemalloc"]);
    }
}
