//! Names that may have been meant by one that does not exist.

/// Names shown.
const SHOWN: usize = 5;

/// From this likeness on (0 to 1, Jaro-Winkler) a name may have been meant.
const LIKE: f64 = 0.85;

/// Those of `names` that are most like `wanted`, the most like first, each once.
pub fn near(wanted: &str, names: impl IntoIterator<Item = String>) -> Vec<String> {
    let wanted_lower = wanted.to_lowercase();
    let likeness = |name: &str| {
        let lower = name.to_lowercase();
        let holds =
            !wanted_lower.is_empty() && (lower.contains(&wanted_lower) || wanted_lower.contains(&lower));
        if holds { 1.0 } else { strsim::jaro_winkler(&wanted_lower, &lower) }
    };
    let mut all: Vec<(f64, String)> = names
        .into_iter()
        .filter(|name| !name.is_empty())
        .map(|name| (likeness(&name), name))
        .filter(|(like, _)| *like >= LIKE)
        .collect();
    all.sort_by(|(one, a), (other, b)| other.total_cmp(one).then_with(|| a.cmp(b)));
    all.dedup_by(|(_, a), (_, b)| a == b);
    all.into_iter().map(|(_, name)| name).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(wanted: &str, names: &[&str]) -> Vec<String> {
        near(wanted, names.iter().map(|&name| name.to_owned()))
    }

    #[test]
    fn names_that_are_like_or_longer_come_and_others_do_not() {
        let names = ["redis.service", "nginx.service", "ssh.service", "nginx.service", ""];
        assert_eq!(of("ngnix.service", &names)[0], "nginx.service");
        assert_eq!(of("redis", &names), ["redis.service"]);
        assert_eq!(of("postgres", &names), Vec::<String>::new());
    }
}
