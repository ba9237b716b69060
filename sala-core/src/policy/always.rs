use super::{Moment, Policy};

/// Climb whenever asked: SAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Always;

impl Policy for Always {
    fn climbs(&self, _moment: Moment) -> bool {
        true
    }
}
