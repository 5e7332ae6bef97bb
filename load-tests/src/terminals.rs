use rand::{Rng, RngExt};

/// Customers and terminals live on a square of this side, in the Handbook's unit of distance.
pub(crate) const SIDE: f64 = 100.0;

/// More cells than this per side save nothing.
const CELLS_PER_SIDE_MAX: usize = 2048;

pub(crate) type Place = [f64; 2];

/// Terminals by place: finds those within a radius without looking at all of them, and without
/// a list per customer (a million customers with thousands of terminals each fit no memory).
#[derive(Debug)]
pub(crate) struct Terminals {
    radius_squared: f64,
    cells_per_side: usize,
    /// Where each cell begins in `sites`, row by row; one more entry at the end.
    starts: Vec<u32>,
    /// Place and number of each terminal, grouped by cell.
    sites: Vec<(Place, u32)>,
}

/// The terminals around one place: a uniform draw among those within the radius.
#[derive(Debug)]
pub(crate) struct Reach<'a> {
    terminals: &'a Terminals,
    center: Place,
    /// Ranges of `sites` that hold every terminal within the radius, one per row of cells.
    candidates: [(u32, u32); 3],
    candidate_count: u32,
}

impl Terminals {
    /// The terminal numbered `i` stands at `places[i]`. A radius that is no positive number
    /// reaches nothing.
    pub(crate) fn new(places: &[Place], radius: f64) -> Terminals {
        let radius = if radius > 0.0 { radius.min(2.0 * SIDE) } else { 0.0 };
        // Cells at least as wide as the radius, so that three rows of three hold every candidate;
        // and not many more cells than terminals.
        let by_radius = (SIDE / radius).min(CELLS_PER_SIDE_MAX as f64) as usize;
        let cells_per_side = by_radius.min((places.len() as f64).sqrt() as usize).max(1);
        let cell_of = |place: &Place| {
            let [column, row] = cell(*place, cells_per_side);
            row * cells_per_side + column
        };
        // A counting sort by cell.
        let mut starts = vec![0_u32; cells_per_side * cells_per_side + 1];
        for place in places {
            starts[cell_of(place) + 1] += 1;
        }
        for i in 1..starts.len() {
            starts[i] += starts[i - 1];
        }
        let mut free = starts.clone();
        let mut sites = vec![([0.0; 2], 0); places.len()];
        for (number, place) in (0..).zip(places) {
            let slot = &mut free[cell_of(place)];
            sites[*slot as usize] = (*place, number);
            *slot += 1;
        }
        Terminals { radius_squared: radius * radius, cells_per_side, starts, sites }
    }

    pub(crate) fn around(&self, center: Place) -> Reach<'_> {
        let [column, row] = cell(center, self.cells_per_side);
        let last = self.cells_per_side - 1;
        let (left, right) = (column.saturating_sub(1), (column + 1).min(last));
        let mut candidates = [(0, 0); 3];
        for (range, row) in candidates.iter_mut().zip(row.saturating_sub(1)..=(row + 1).min(last)) {
            let first = row * self.cells_per_side;
            *range = (self.starts[first + left], self.starts[first + right + 1]);
        }
        let candidate_count = candidates.iter().map(|(start, end)| end - start).sum();
        Reach { terminals: self, center, candidates, candidate_count }
    }
}

impl Reach<'_> {
    /// No terminal is near enough.
    pub(crate) fn is_empty(&self) -> bool {
        !(0..self.candidate_count).any(|nth| self.covers(self.candidate(nth).0))
    }

    /// The number of a terminal, uniform among those in reach. Never returns if there is none:
    /// candidates are drawn until one lies within the radius, one try in three on average.
    pub(crate) fn draw(&self, rng: &mut impl Rng) -> u32 {
        loop {
            let (place, number) = self.candidate(rng.random_range(0..self.candidate_count));
            if self.covers(place) {
                return number;
            }
        }
    }

    fn covers(&self, place: Place) -> bool {
        let [dx, dy] = [place[0] - self.center[0], place[1] - self.center[1]];
        dx * dx + dy * dy < self.terminals.radius_squared
    }

    fn candidate(&self, mut nth: u32) -> (Place, u32) {
        for (start, end) in self.candidates {
            if nth < end - start {
                return self.terminals.sites[(start + nth) as usize];
            }
            nth -= end - start;
        }
        unreachable!("nth is below the number of candidates");
    }
}

fn cell(place: Place, cells_per_side: usize) -> [usize; 2] {
    place.map(|at| ((at / SIDE * cells_per_side as f64) as usize).min(cells_per_side - 1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn in_reach(places: &[Place], center: Place, radius: f64) -> Vec<u32> {
        let near = |place: &Place| ((place[0] - center[0]).powi(2) + (place[1] - center[1]).powi(2)).sqrt() < radius;
        (0..).zip(places).filter(|(_, place)| near(place)).map(|(number, _)| number).collect()
    }

    proptest! {
        #[test]
        fn reach_is_every_terminal_within_the_radius(
            places in prop::collection::vec(prop::array::uniform2(0.0..SIDE), 0..300),
            center in prop::array::uniform2(0.0..SIDE),
            radius in prop_oneof![0.0..3.0, 0.0..150.0],
        ) {
            let terminals = Terminals::new(&places, radius);
            let reach = terminals.around(center);
            let mut found: Vec<u32> = (0..reach.candidate_count)
                .map(|nth| reach.candidate(nth))
                .filter(|(place, _)| reach.covers(*place))
                .map(|(_, number)| number)
                .collect();
            found.sort_unstable();
            let expected = in_reach(&places, center, radius);
            prop_assert_eq!(reach.is_empty(), expected.is_empty());
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn draws_are_uniform_among_those_in_reach() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let places: Vec<Place> = (0..2000).map(|_| [rng.random::<f64>() * SIDE, rng.random::<f64>() * SIDE]).collect();
        let center = [98.0, 51.0];
        let expected = in_reach(&places, center, 5.0);
        assert!(expected.len() > 5, "{expected:?}");
        let terminals = Terminals::new(&places, 5.0);
        let reach = terminals.around(center);
        let mut counts = BTreeMap::new();
        let draws_each = 2000;
        for _ in 0..draws_each * expected.len() {
            *counts.entry(reach.draw(&mut rng)).or_insert(0_u32) += 1;
        }
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), expected);
        // Five standard deviations of a binomial count around 2000.
        assert!(counts.values().all(|count| count.abs_diff(draws_each as u32) < 224), "{counts:?}");
    }

    #[test]
    fn a_radius_that_is_no_positive_number_reaches_nothing() {
        for radius in [0.0, -5.0, f64::NAN, f64::NEG_INFINITY] {
            assert!(Terminals::new(&[[50.0, 50.0]], radius).around([50.0, 50.0]).is_empty(), "{radius}");
        }
        assert!(!Terminals::new(&[[0.0, 0.0]], f64::INFINITY).around([99.0, 99.0]).is_empty());
        assert!(Terminals::new(&[], 5.0).around([0.0, 0.0]).is_empty());
    }
}
