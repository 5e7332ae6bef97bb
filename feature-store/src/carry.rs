//! What an event brings along to the views of other entities: features of its card, as they were for it.

use schemas::Transaction;

use crate::view::{Scratch, View};
use crate::window::WindowState;

/// Features of the card that decide what goes into the windows of other entities, as `AMOUNT_TO_USUAL` in
/// `where: AMOUNT_TO_USUAL <= 2.5` under the view of terminals.
///
/// A terminal's events come from all cards, so whoever keeps its windows has no card's at hand. The values are computed where
/// the events are re-keyed, from the same partition of the log and by the same code as in the scorer, and go along with
/// each event.
#[derive(Debug)]
pub struct Carry {
    /// The card's windows, as far as these features need them.
    pub(crate) view: View,
    pub(crate) slots: Vec<usize>,
    pub(crate) meaning: u64,
}

impl Carry {
    /// What the states of cards are kept by where events are re-keyed.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// A hash of what the values mean, by which those of other definitions are told apart.
    pub fn meaning(&self) -> u64 {
        self.meaning
    }

    /// Brings an event into the state of its card, and gives what it brings along; `NaN` is missing.
    pub fn values<'a>(
        &'a self,
        transaction: &Transaction,
        state: &mut WindowState,
        scratch: &'a mut Scratch,
    ) -> impl ExactSizeIterator<Item = f64> + 'a {
        self.view.apply(transaction, state, scratch);
        self.slots.iter().map(|&slot| scratch.values[slot])
    }
}
