//! Which word was meant. Pure.

/// The known word that a misspelt one most likely stands for.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let near = known.map(|known| (distance(&lower, &known.to_lowercase()), known)).min()?;
    (near.0 <= 2.min(word.len() / 3)).then_some(near.1)
}

/// How many letters must be put in, left out or changed to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (to, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let changed = corner + usize::from(from != *to);
            corner = *cell;
            left = changed.min(corner + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_word_that_is_nearly_the_same_is_meant() {
        let known = || ["cores", "model", "pinning"].into_iter();
        assert_eq!(nearest("cors", known()), Some("cores"));
        assert_eq!(nearest("Cores", known()), Some("cores"));
        assert_eq!(nearest("memory", known()), None);
        assert_eq!(nearest("x", known()), None);
    }

    proptest! {
        #[test]
        fn no_distance_is_larger_than_the_longer_word(a in "[a-z]{0,12}", b in "[a-z]{0,12}") {
            prop_assert!(distance(&a, &b) <= a.len().max(b.len()));
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &a), 0);
        }
    }
}
