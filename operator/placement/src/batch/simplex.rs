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

/// Solves one program.
pub(super) fn solve(rows: &[(Vec<f64>, f64)], gain: &[f64]) -> Solved {
    Simplex::new(rows, gain.len()).solve(gain)
}

/// Programs over the same rows, each solved from where the last one ended.
pub(super) struct Simplex {
    /// Rows end with their bound; the last row is the objective.
    table: Vec<Vec<f64>>,
    /// What stands at each column: below the number of variables one of them, from there on the slack of
    /// a row.
    outside: Vec<usize>,
    /// What stands in each row.
    inside: Vec<usize>,
}

impl Simplex {
    /// `y = 0` is feasible, so there is no first phase.
    pub(super) fn new(rows: &[(Vec<f64>, f64)], variables: usize) -> Self {
        let mut table: Vec<Vec<f64>> =
            rows.iter().map(|(row, bound)| [row.as_slice(), &[*bound]].concat()).collect();
        table.push(vec![0.0; variables + 1]);
        let inside = (variables..variables + rows.len()).collect();
        Self { table, outside: (0..variables).collect(), inside }
    }

    /// Solves by the primal simplex method. The steepest column enters; after a while the first (Bland's
    /// rule), which cannot cycle.
    pub(super) fn solve(&mut self, gain: &[f64]) -> Solved {
        let (m, n) = (self.inside.len(), self.outside.len());
        self.set_objective(gain);
        let Self { table, outside, inside } = self;
        for pivots in 0..PIVOTS {
            let negative = (0..n).filter(|column| table[m][*column] < -TINY);
            let entering = if pivots < PIVOTS / 10 {
                negative
                    .min_by(|a, b| table[m][*a].total_cmp(&table[m][*b]).then(outside[*a].cmp(&outside[*b])))
            } else {
                negative.min_by_key(|column| outside[*column])
            };
            let Some(column) = entering else { break };
            let leaving = (0..m).filter(|row| table[*row][column] > TINY).min_by(|a, b| {
                let ratio = |row: usize| table[row][n] / table[row][column];
                ratio(*a).total_cmp(&ratio(*b)).then(inside[*a].cmp(&inside[*b]))
            });
            let Some(row) = leaving else { break };
            pivot(table, row, column);
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

    /// The objective in terms of what stands outside now.
    fn set_objective(&mut self, gain: &[f64]) {
        let Some(mut objective) = self.table.pop() else { return };
        for (cell, variable) in objective.iter_mut().zip(&self.outside) {
            *cell = -gain.get(*variable).copied().unwrap_or(0.0);
        }
        if let Some(last) = objective.last_mut() {
            *last = 0.0;
        }
        for (row, variable) in self.table.iter().zip(&self.inside) {
            let gain = gain.get(*variable).copied().unwrap_or(0.0);
            if gain != 0.0 {
                objective.iter_mut().zip(row).for_each(|(cell, of)| *cell += gain * of);
            }
        }
        self.table.push(objective);
    }
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
