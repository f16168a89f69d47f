//! The kernel's symbols: addresses by name, names by address, modules included.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, BufReader, Read as _},
};

use anyhow::{Context as _, Result};

const PATH: &str = "/proc/kallsyms";

/// A hundred times what a kernel has.
const MAX_BYTES: u64 = 1 << 30;

/// No function is longer; what lies further from the symbol before it has no name.
const MAX_FUNCTION: u64 = 256 << 10;

/// The modules under which the kernel lists code that it has made: of BPF programs, and to get to probes.
const GENERATED: [&str; 3] = ["bpf", "__builtin__ftrace", "__builtin__kprobes"];

/// A symbol that an address lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address.
    pub start: u64,
    /// The module that it belongs to; `None` for the kernel itself.
    pub module: Option<&'a str>,
}

/// All symbols at one time.
#[derive(Debug, Default)]
pub struct Kallsyms {
    names: String,
    modules: Vec<String>,
    /// By address.
    symbols: Vec<Symbol>,
    ends: Ends,
}

#[derive(Clone, Copy, Debug)]
struct Symbol {
    address: u64,
    name: u32,
    len: u16,
    /// Index into `modules`, plus 1.
    module: u16,
    code: bool,
}

impl Found<'_> {
    /// Whether it is code that the kernel has made.
    pub fn is_generated(&self) -> bool {
        self.module.is_some_and(|module| GENERATED.contains(&module))
    }
}

/// Where modules end, by name: code that the kernel makes comes to lie behind them.
pub type Ends = HashMap<String, u64>;

/// Reads lines of /proc/modules such as `leaky 20480 0 - Live 0xffffffffc0a01000 (O)`.
pub fn module_ends(text: &str) -> Ends {
    let end = |line: &str| {
        let mut words = line.split(' ');
        let (name, bytes) = (words.next()?, words.next()?.parse::<u64>().ok()?);
        let start = u64::from_str_radix(words.nth(3)?.strip_prefix("0x")?, 16).ok()?;
        Some((name.to_owned(), start.checked_add(bytes)?))
    };
    text.lines().filter_map(end).collect()
}

impl Kallsyms {
    /// Those of the running kernel.
    ///
    /// # Errors
    /// When they cannot be read. Where the kernel hides their addresses, [`Kallsyms::is_hidden`] says so.
    pub fn read() -> Result<Self> {
        let file = fs::File::open(PATH).with_context(|| format!("failed to open {PATH}"))?;
        let symbols = Self::parse(BufReader::new(file.take(MAX_BYTES)));
        let mut symbols = symbols.with_context(|| format!("failed to read {PATH}"))?;
        // Kernels without modules have no such file.
        symbols.ends = module_ends(&fs::read_to_string("/proc/modules").unwrap_or_default());
        Ok(symbols)
    }

    /// Reads lines such as `ffffffff81000000 T _stext` and `ffffffffc0a01000 t work<TAB>[module]`.
    ///
    /// # Errors
    /// What reading came to. Lines of another form are left out.
    pub fn parse(mut text: impl BufRead) -> io::Result<Self> {
        let mut all = Self::default();
        let mut modules: HashMap<String, u16> = HashMap::new();
        let mut line = String::new();
        loop {
            line.clear();
            if text.read_line(&mut line)? == 0 {
                break;
            }
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let (Ok(address), Ok(len)) = (u64::from_str_radix(address, 16), u16::try_from(name.len())) else {
                continue;
            };
            // Where the compiler pads functions, the padding has a symbol of its own.
            if name.starts_with("__pfx_") || name.starts_with("__cfi_") {
                continue;
            }
            let module = match words.next().and_then(|word| word.strip_prefix('[')?.strip_suffix(']')) {
                None => 0,
                Some(module) => match modules.get(module) {
                    Some(&index) => index,
                    None => {
                        all.modules.push(module.to_owned());
                        let index = u16::try_from(all.modules.len()).unwrap_or(0);
                        modules.insert(module.to_owned(), index);
                        index
                    }
                },
            };
            let Ok(start) = u32::try_from(all.names.len()) else { break };
            all.names.push_str(name);
            let code = matches!(kind, "t" | "T" | "w" | "W");
            all.symbols.push(Symbol { address, name: start, len, module, code });
        }
        all.symbols.sort_by_key(|symbol| symbol.address);
        Ok(all)
    }

    fn name(&self, symbol: &Symbol) -> &str {
        &self.names[symbol.name as usize..][..usize::from(symbol.len)]
    }

    fn found(&self, symbol: &Symbol) -> Found<'_> {
        let module = usize::from(symbol.module).checked_sub(1).and_then(|index| self.modules.get(index));
        Found { name: self.name(symbol), start: symbol.address, module: module.map(String::as_str) }
    }

    /// Whether the kernel shows names and no addresses (`kernel.kptr_restrict`).
    pub fn is_hidden(&self) -> bool {
        self.symbols.iter().all(|symbol| symbol.address == 0)
    }

    /// The symbols of modules that are not in `later`: those that have gone.
    pub fn gone(&self, later: &Self) -> Self {
        let is_gone =
            |module: &String| !GENERATED.contains(&module.as_str()) && !later.modules.contains(module);
        let mut gone = Self { modules: self.modules.clone(), ends: self.ends.clone(), ..Self::default() };
        for symbol in &self.symbols {
            let module = usize::from(symbol.module).checked_sub(1).and_then(|index| self.modules.get(index));
            if module.is_some_and(is_gone) {
                let name = gone.names.len() as u32;
                gone.names.push_str(self.name(symbol));
                gone.symbols.push(Symbol { name, ..*symbol });
            }
        }
        gone
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// The address of a name; of the kernel itself where a module has it too.
    pub fn address(&self, name: &str) -> Option<u64> {
        let all = self.symbols.iter().filter(|symbol| self.name(symbol) == name && symbol.address != 0);
        all.min_by_key(|symbol| symbol.module).map(|symbol| symbol.address)
    }

    /// Whether there is a symbol of this name, whatever is told of its address.
    pub fn has(&self, name: &str) -> bool {
        self.symbols.iter().any(|symbol| self.name(symbol) == name)
    }

    /// The function that an address lies in.
    pub fn function(&self, address: u64) -> Option<Found<'_>> {
        let end = self.symbols.partition_point(|symbol| symbol.address <= address);
        let nearest = self.symbols[..end].iter().rev().find(|symbol| symbol.code)?;
        // Of several names of one address, the first that is no mere mark of the linker.
        let start = self.symbols.partition_point(|symbol| symbol.address < nearest.address);
        let same = self.symbols[start..end].iter().take_while(|symbol| symbol.address == nearest.address);
        let best =
            same.filter(|symbol| symbol.code).min_by_key(|symbol| self.name(symbol).starts_with('_'))?;
        let found = self.found(best);
        let end = found.module.and_then(|module| self.ends.get(module)).copied().unwrap_or(u64::MAX);
        (address - best.address < MAX_FUNCTION && best.address != 0 && address < end).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
ffffffff81000000 T _stext
ffffffff81000000 T startup_64
ffffffff81000100 t __pfx_kfree
ffffffff81000110 T kfree
ffffffff81000200 d some_data
ffffffffc0a01000 t leak_it\t[leaky]
ffffffffc0a01000 t kfree\t[leaky]
junk
";

    #[test]
    fn an_address_lies_in_the_function_before_it() {
        let all = Kallsyms::parse(TEXT.as_bytes()).expect("symbols");
        let name = |address| all.function(address).map(|found| (found.name, found.module));
        assert_eq!(name(0xffff_ffff_8100_0001), Some(("startup_64", None)));
        assert_eq!(name(0xffff_ffff_8100_0101), Some(("startup_64", None)), "padding is no function");
        assert_eq!(name(0xffff_ffff_8100_0204), Some(("kfree", None)), "data is none either");
        assert_eq!(name(0xffff_ffff_c0a0_1004).map(|(_, module)| module), Some(Some("leaky")));
        assert_eq!(name(0xffff_ffff_8000_0000), None);
        assert_eq!(name(0xffff_ffff_9000_0000), None, "too far from any");
        assert_eq!(all.address("kfree"), Some(0xffff_ffff_8100_0110), "the kernel's own first");
        assert_eq!(all.address("gone"), None);
        assert!(!all.is_hidden());
    }

    #[test]
    fn what_lies_behind_a_module_is_not_its_last_function() {
        let mut all = Kallsyms::parse(TEXT.as_bytes()).expect("symbols");
        all.ends = module_ends("leaky 4096 0 - Live 0xffffffffc0a01000 (O)\nodd line\n");
        assert_eq!(all.function(0xffff_ffff_c0a0_1fff).and_then(|found| found.module), Some("leaky"));
        assert_eq!(all.function(0xffff_ffff_c0a0_2000), None);
    }

    #[test]
    fn modules_that_have_gone_are_kept_apart() {
        let all = Kallsyms::parse(TEXT.as_bytes()).expect("symbols");
        let later = Kallsyms::parse(&b"ffffffff81000110 T kfree\n"[..]).expect("symbols");
        let gone = all.gone(&later);
        let name = |address| {
            gone.function(address).map(|found| (found.name.to_owned(), found.module.map(str::to_owned)))
        };
        assert_eq!(name(0xffff_ffff_c0a0_1004).expect("there").1.as_deref(), Some("leaky"));
        assert_eq!(name(0xffff_ffff_8100_0112), None, "the kernel's own have not gone");
        assert!(all.gone(&all).is_empty());
    }

    #[test]
    fn hidden_addresses_are_zeros() {
        let all = Kallsyms::parse(&b"0000000000000000 T kfree\n0000000000000000 t x\n"[..]).expect("symbols");
        assert!(all.is_hidden());
        assert_eq!((all.address("kfree"), all.function(8)), (None, None));
    }
}
