//! A small linear program solver: revised simplex with columns made on demand.
//!
//! Maximises the value of the columns in use so that each row adds up to at most its limit. A row
//! with a penalty must add up to its limit exactly, or what is missing costs the penalty.

/// One variable: its value, and the rows it adds to.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// What one unit is worth.
    pub(crate) value: f64,
    /// Rows and amounts.
    pub(crate) entries: Vec<(usize, f64)>,
}

/// One constraint; limits are not negative.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// The most that may be used, or what must be used.
    pub(crate) limit: f64,
    /// The price of each unit that is missing, 0 where less than the limit is fine.
    pub(crate) penalty: f64,
}

const TOLERANCE: f64 = 1e-7;
const MOST_STEPS: usize = 50_000;

/// The highest value. `best` is given a price for each row, and returns a column whose value exceeds
/// its cost, the more the better, or none if there is no such column.
///
/// None if rounding errors keep it from an end.
pub(crate) fn maximise(rows: &[Row], mut best: impl FnMut(&[f64]) -> Option<Column>) -> Option<f64> {
    let size = rows.len();
    let mut inverse = vec![vec![0.0; size]; size];
    for (i, line) in inverse.iter_mut().enumerate() {
        line[i] = 1.0;
    }
    let mut amounts: Vec<f64> = rows.iter().map(|row| row.limit).collect();
    let mut values: Vec<f64> = rows.iter().map(|row| -row.penalty).collect();
    for _ in 0..MOST_STEPS {
        let mut prices = vec![0.0; size];
        for (line, value) in inverse.iter().zip(&values).filter(|(_, value)| **value != 0.0) {
            for (price, entry) in prices.iter_mut().zip(line) {
                *price += value * entry;
            }
        }
        let slack = (0..size).filter(|&i| rows[i].penalty == 0.0 && prices[i] < -TOLERANCE);
        let entering = match slack.min_by(|&a, &b| prices[a].total_cmp(&prices[b])) {
            Some(row) => Column { value: 0.0, entries: vec![(row, 1.0)] },
            None => match best(&prices) {
                Some(column) if gain(&column, &prices) > TOLERANCE => column,
                Some(_) | None => return Some(amounts.iter().zip(&values).map(|(a, v)| a * v).sum()),
            },
        };
        let step: Vec<f64> =
            inverse.iter().map(|line| entering.entries.iter().map(|&(row, x)| line[row] * x).sum()).collect();
        let leaving = (0..size).filter(|&i| step[i] > 1e-9).min_by(|&a, &b| {
            (amounts[a] / step[a]).total_cmp(&(amounts[b] / step[b])).then(step[b].total_cmp(&step[a]))
        })?;
        let ratio = amounts[leaving] / step[leaving];
        let pivot: Vec<f64> = inverse[leaving].iter().map(|entry| entry / step[leaving]).collect();
        for i in 0..size {
            if i != leaving && step[i] != 0.0 {
                amounts[i] = (amounts[i] - ratio * step[i]).max(0.0);
                for (entry, of_pivot) in inverse[i].iter_mut().zip(&pivot) {
                    *entry -= step[i] * of_pivot;
                }
            }
        }
        inverse[leaving] = pivot;
        amounts[leaving] = ratio;
        values[leaving] = entering.value;
    }
    None
}

/// What a unit of the column is worth beyond its price.
pub(crate) fn gain(column: &Column, prices: &[f64]) -> f64 {
    column.value - column.entries.iter().map(|&(row, amount)| prices[row] * amount).sum::<f64>()
}
