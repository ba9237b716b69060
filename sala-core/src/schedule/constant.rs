use super::Schedule;

/// 1 at every position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Constant;

impl Schedule for Constant {
    fn factor(&self, _at: u64) -> f64 {
        1.0
    }
}
