//! Which systems are worked on together.

/// Consecutive groups of `size` systems of `order`. With `drop_last` an incomplete last group is left out.
pub fn by_count(order: &[usize], size: usize, drop_last: bool) -> Vec<Vec<usize>> {
    order.chunks(size.max(1)).filter(|group| !drop_last || group.len() == size).map(<[usize]>::to_vec).collect()
}

/// What [`by_atoms`] made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// The groups.
    pub batches: Vec<Vec<usize>>,
    /// Systems with more atoms than a group may have.
    pub too_large: usize,
}

/// Groups of systems in the order of `order`, each with as many as fit into `maximum` atoms; groups with fewer than `minimum` atoms are left out.
pub fn by_atoms(order: &[usize], atom_counts: &[usize], minimum: usize, maximum: usize) -> Packed {
    let mut packed = Packed::default();
    let mut group = Vec::new();
    let mut atoms = 0;
    for &system in order {
        let count = atom_counts[system];
        if count > maximum {
            packed.too_large += 1;
            continue;
        }
        if atoms + count > maximum {
            if atoms >= minimum {
                packed.batches.push(std::mem::take(&mut group));
            }
            group.clear();
            atoms = 0;
        }
        group.push(system);
        atoms += count;
    }
    if !group.is_empty() && atoms >= minimum {
        packed.batches.push(group);
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_last_batch_can_be_dropped() {
        let order = [4, 3, 2, 1, 0];
        assert_eq!(by_count(&order, 2, true), [[4, 3], [2, 1]]);
        assert_eq!(by_count(&order, 2, false), [vec![4, 3], vec![2, 1], vec![0]]);
        assert!(by_count(&order, 6, true).is_empty());
    }

    #[test]
    fn batches_are_filled_up_to_the_largest_number_of_atoms() {
        let packed = by_atoms(&[0, 1, 2, 3, 4], &[3, 3, 9, 3, 2], 4, 6);
        // system 2 is too large; system 4 alone has too few atoms
        assert_eq!(packed, Packed { batches: vec![vec![0, 1], vec![3, 4]], too_large: 1 });
        assert_eq!(by_atoms(&[0, 1, 2], &[3, 3, 2], 3, 6).batches, [[0, 1]]);
    }
}
