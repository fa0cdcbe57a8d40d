//! `max gain · y` where `row · y <= bound` for each row and `y >= 0`, with bounds that are not negative.

/// What counts as zero.
pub(super) const TINY: f64 = 1e-9;

/// More pivots than any program of this size needs.
const PIVOTS: usize = 20_000;

/// A solution and its dual.
pub(super) struct Solved {
    /// Objective.
    pub(super) objective: f64,
    /// `y`.
    pub(super) prices: Vec<f64>,
    /// The dual: how much of each row.
    pub(super) amounts: Vec<f64>,
}

/// Solves by the primal simplex method. `y = 0` is feasible, so there is no first phase. The steepest
/// column enters; after a while the first (Bland's rule), which cannot cycle.
pub(super) fn solve(rows: &[(Vec<f64>, f64)], gain: &[f64]) -> Solved {
    let (m, n) = (rows.len(), gain.len());
    // Rows end with their bound; the last row is the objective.
    let mut table: Vec<Vec<f64>> =
        rows.iter().map(|(row, bound)| [row.as_slice(), &[*bound]].concat()).collect();
    table.push(gain.iter().map(|g| -g).chain([0.0]).collect());
    // What stands at each column and in each row: below n a variable, from n on the slack of a row.
    let mut outside: Vec<usize> = (0..n).collect();
    let mut inside: Vec<usize> = (n..n + m).collect();
    for pivots in 0..PIVOTS {
        let negative = (0..n).filter(|column| table[m][*column] < -TINY);
        let entering = if pivots < PIVOTS / 10 {
            negative.min_by(|a, b| table[m][*a].total_cmp(&table[m][*b]).then(outside[*a].cmp(&outside[*b])))
        } else {
            negative.min_by_key(|column| outside[*column])
        };
        let Some(column) = entering else { break };
        let leaving = (0..m).filter(|row| table[*row][column] > TINY).min_by(|a, b| {
            let ratio = |row: usize| table[row][n] / table[row][column];
            ratio(*a).total_cmp(&ratio(*b)).then(inside[*a].cmp(&inside[*b]))
        });
        let Some(row) = leaving else { break };
        pivot(&mut table, row, column);
        std::mem::swap(&mut inside[row], &mut outside[column]);
    }
    let mut solved = Solved { objective: table[m][n], prices: vec![0.0; n], amounts: vec![0.0; m] };
    for (row, variable) in inside.iter().enumerate() {
        if *variable < n {
            solved.prices[*variable] = table[row][n].max(0.0);
        }
    }
    for (column, variable) in outside.iter().enumerate() {
        if *variable >= n {
            solved.amounts[*variable - n] = table[m][column].max(0.0);
        }
    }
    solved
}

fn pivot(table: &mut [Vec<f64>], row: usize, column: usize) {
    let by = table[row][column];
    for (at, cell) in table[row].iter_mut().enumerate() {
        *cell = if at == column { 1.0 / by } else { *cell / by };
    }
    let pivot_row = table[row].clone();
    for (_, other) in table.iter_mut().enumerate().filter(|(at, _)| *at != row) {
        let factor = other[column];
        if factor == 0.0 {
            continue;
        }
        for (at, cell) in other.iter_mut().enumerate() {
            *cell = if at == column { -factor * pivot_row[at] } else { *cell - factor * pivot_row[at] };
        }
    }
}
