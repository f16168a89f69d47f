//! Fields of a classic tracepoint's record, from its format file.

/// A tracepoint's format file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Format(Vec<(String, u64)>);

impl Format {
    /// Reads lines such as `field:size_t bytes_req; offset:24; size:8; signed:0;`, with tabs between the parts.
    pub fn parse(text: &str) -> Self {
        let field = |line: &str| {
            let (declaration, rest) = line.trim().strip_prefix("field:")?.split_once(';')?;
            let name = declaration.trim().trim_end_matches("[]").rsplit([' ', '*']).next()?;
            let offset = rest.trim().strip_prefix("offset:")?.split(';').next()?.parse().ok()?;
            Some((name.to_owned(), offset))
        };
        Self(text.lines().filter_map(field).collect())
    }

    /// Where a field begins, in bytes from the record's start; `None` where there is none of this name.
    pub fn offset(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, offset)| *offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let format = Format::parse(
            "name: kmem_cache_alloc\nID: 500\nformat:\n\
             \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
             \tfield:unsigned long call_site;\toffset:8;\tsize:8;\tsigned:0;\n\
             \tfield:const void * ptr;\toffset:16;\tsize:8;\tsigned:0;\n\
             \tfield:__data_loc char[] name;\toffset:24;\tsize:4;\tsigned:0;\n\
             \tfield:void __percpu *other;\toffset:56;\tsize:8;\tsigned:0;\n\nprint fmt: \"x\"\n",
        );
        let at = |name| format.offset(name);
        assert_eq!(
            [at("ptr"), at("name"), at("call_site"), at("other")],
            [Some(16), Some(24), Some(8), Some(56)]
        );
        assert_eq!(at("bytes_req"), None);
    }
}
