//! The table that a launch finds its work in: the jobs, then the first block of each and the end. A block looks for its
//! job, so the table has no word for each block: the driver waits for the card before it uploads more
//! than 64 KiB from memory that is not pinned, which is 409 jobs. Plain numbers, without a card.

use candle_core::{Result, bail};

/// Elements of a block's chunk; `device/block.cuh` has the same number.
pub(super) const CHUNK: usize = 16 * 1024;

/// Addresses that are multiples of this are loaded and stored several elements at a time.
const ALIGNMENT: u64 = 16;

/// Blocks of a launch, at most.
const MAX_BLOCKS: usize = i32::MAX as usize;

/// Bits of a job's flags; `device/rules.cuh` has the same.
pub(super) mod flag {
    pub(in super::super) const ALIGNED: u64 = 1;
    pub(in super::super) const COUPLED: u64 = 2;
    pub(in super::super) const FIRST: u64 = 4;
    pub(in super::super) const NESTEROV: u64 = 8;
    pub(in super::super) const RETURN: u64 = 16;
    pub(in super::super) const BF16_GRADIENT: u64 = 32;
    pub(in super::super) const F16_GRADIENT: u64 = 64;
}

/// One tensor's share of a launch. What stands where depends on the rule and is written in `device/rules.cuh`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Job {
    /// Addresses, 0 for what is not there.
    pub(super) at: [u64; 6],
    pub(super) len: usize,
    /// Constants.
    pub(super) by: [f64; 11],
    pub(super) flags: u64,
}

/// Words of a job: its fields one after the other.
const JOB: usize = 19;

impl Job {
    fn words(&self) -> [u64; JOB] {
        let aligned = self.at.iter().all(|at| at.is_multiple_of(ALIGNMENT));
        let mut words = [0; JOB];
        words[..6].copy_from_slice(&self.at);
        words[6] = self.len as u64;
        for (word, x) in words[7..18].iter_mut().zip(self.by) {
            *word = x.to_bits();
        }
        words[18] = self.flags | if aligned { flag::ALIGNED } else { 0 };
        words
    }

    /// Blocks that take a chunk each.
    fn blocks(&self) -> usize {
        self.len.div_ceil(CHUNK)
    }
}

/// What is uploaded for a launch, in words of 8 bytes.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) words: Vec<i64>,
    /// Blocks of the launch.
    pub(super) blocks: u32,
}

impl Table {
    /// # Errors
    /// For more blocks than a launch can have.
    pub(super) fn new(jobs: &[Job]) -> Result<Self> {
        let blocks: usize = jobs.iter().map(Job::blocks).sum();
        let (true, Ok(count)) = (blocks <= MAX_BLOCKS, u32::try_from(blocks)) else {
            bail!("{blocks} blocks of {CHUNK} elements are more than one launch can have");
        };
        let mut words = Vec::with_capacity(jobs.len() * (JOB + 1) + 1);
        words.extend(jobs.iter().flat_map(Job::words));
        let mut first = 0;
        words.push(first);
        for job in jobs {
            first += job.blocks() as u64;
            words.push(first);
        }
        Ok(Self {
            words: words.into_iter().map(u64::cast_signed).collect(),
            blocks: count,
        })
    }

    /// Where the first blocks of so many jobs are, which are also the places of their first partial sums, in a table that
    /// was uploaded to `base`.
    pub(super) fn first_blocks(base: u64, jobs: usize) -> u64 {
        base + 8 * (JOB * jobs) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(len: usize) -> Job {
        Job {
            len,
            ..Default::default()
        }
    }

    // Catches blocks that are counted to another job, and jobs that stand elsewhere than kernels look for them.
    #[test]
    fn blocks_and_jobs_stand_where_the_kernels_look_for_them() {
        let lens = [
            0,
            1,
            CHUNK - 1,
            CHUNK,
            CHUNK + 1,
            0,
            3 * CHUNK,
            5 * CHUNK + 7,
        ];
        let jobs = lens.map(job);
        let table = Table::new(&jobs).unwrap();
        let words: Vec<u64> = table.words.iter().map(|w| w.cast_unsigned()).collect();
        let all: Vec<u64> = jobs.iter().flat_map(Job::words).collect();
        assert_eq!(words[..8 * JOB], all);
        assert_eq!(Table::first_blocks(0, 8), 8 * 8 * JOB as u64);
        assert_eq!(words[8 * JOB..], [0, 0, 1, 2, 3, 5, 5, 8, 14]);
        assert_eq!(table.blocks, 14);
    }

    // Catches a word for each block, with which an upload of 100 million weights kept the host waiting.
    #[test]
    fn a_table_is_small_whatever_its_tensors() {
        let jobs = vec![job(1 << 30); 400];
        let table = Table::new(&jobs).unwrap();
        assert!(8 * table.words.len() <= 64 * 1024, "{}", table.words.len());
    }

    #[test]
    fn fields_stand_where_the_kernels_read_them() {
        let job = Job {
            at: [16, 32, 0, 64, 0, 96],
            len: 7,
            by: std::array::from_fn(|i| i as f64),
            flags: flag::COUPLED | flag::RETURN,
        };
        let words = job.words();
        assert_eq!(words[..7], [16, 32, 0, 64, 0, 96, 7]);
        assert_eq!(f64::from_bits(words[17]).to_bits(), 10f64.to_bits());
        assert_eq!(words[18], flag::ALIGNED | flag::COUPLED | flag::RETURN);
        let shifted = Job {
            at: [16, 36, 0, 0, 0, 0],
            ..job
        };
        assert_eq!(shifted.words()[18], flag::COUPLED | flag::RETURN);
    }

    #[test]
    fn more_blocks_than_a_launch_can_have_are_an_error() {
        let message = Table::new(&[job(CHUNK * (MAX_BLOCKS + 1))])
            .unwrap_err()
            .to_string();
        assert!(message.contains("more than one launch"), "{message}");
    }
}
