unsafe extern "C" {
    safe fn leaf();
    safe fn report();
}

struct Cache(u64);

trait Keep {
    fn keep(&mut self);
}

impl Keep for Cache {
    #[inline(never)]
    fn keep(&mut self) {
        helper(self); // line: keep
        self.0 += 1;
    }
}

#[inline(always)]
fn helper(cache: &mut Cache) {
    leaf(); // line: helper
    cache.0 += 1;
}

fn main() {
    let mut cache = Cache(0);
    cache.keep();
    report();
    std::process::exit(i32::from(cache.0 != 2));
}
