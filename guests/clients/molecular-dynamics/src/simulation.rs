//! Newton's equations, step by step (velocity Verlet). Lengths are in angstrom, energies in electronvolt, times in femtoseconds, masses in unified atomic
//! mass units.

/// The acceleration of one unit of mass by one of force.
const ACCELERATION: f64 = 0.009_648_533_212;
/// Boltzmann's constant.
const BOLTZMANN: f64 = 8.617_333_262e-5;
/// The distance of molecules on their grid: some more than in the liquid, where they have 4.6 angstrom to themselves.
const SPACING: f64 = 6.0;

/// One molecule of ethanol: the atomic number and the position of each atom.
const ETHANOL: [(i32, [f64; 3]); 9] = [
    (6, [-0.360, 0.812, -1.004]),
    (6, [-0.410, -0.345, -0.023]),
    (8, [0.722, -0.397, 0.914]),
    (1, [0.607, -1.232, 1.372]),
    (1, [-1.276, -0.291, 0.567]),
    (1, [-0.388, -1.249, -0.555]),
    (1, [0.546, 1.422, -1.201]),
    (1, [-0.850, 0.510, -1.899]),
    (1, [-0.930, 1.578, -0.546]),
];

/// Atoms where they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Structure {
    /// Atomic numbers.
    pub types: Vec<i32>,
    /// Three numbers for each atom.
    pub positions: Vec<f64>,
    /// The edge of the cubic box that repeats in all directions, if there is one.
    pub box_edge: Option<f64>,
}

impl Structure {
    /// So many molecules of ethanol: one alone, or several on a grid in a periodic box.
    pub fn ethanol(molecules: u32) -> Self {
        let along = (1..).find(|along: &u32| along.pow(3) >= molecules).unwrap_or(1);
        let mut structure = Self {
            types: Vec::new(),
            positions: Vec::new(),
            box_edge: (molecules > 1).then_some(SPACING * f64::from(along)),
        };
        for molecule in 0..molecules {
            let corner = [molecule % along, molecule / along % along, molecule / along / along];
            for (atomic_number, position) in ETHANOL {
                structure.types.push(atomic_number);
                structure.positions.extend((0..3).map(|axis| position[axis] + SPACING * f64::from(corner[axis])));
            }
        }
        structure
    }
}

/// The potential energy and the force on each atom.
#[derive(Clone, Debug, PartialEq)]
pub struct Forces {
    /// The energy.
    pub energy: f64,
    /// Three numbers for each atom.
    pub forces: Vec<f64>,
}

/// Atoms that move.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// Where they are.
    pub structure: Structure,
    velocities: Vec<f64>,
    masses: Vec<f64>,
    present: Forces,
    time: f64,
}

/// Energies at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// The time.
    pub time: f64,
    /// The potential energy.
    pub potential: f64,
    /// The kinetic energy.
    pub kinetic: f64,
}

impl State {
    /// What does not change.
    pub fn total(&self) -> f64 {
        self.potential + self.kinetic
    }

    /// The temperature of so many atoms.
    pub fn temperature(&self, atoms: usize) -> f64 {
        2.0 * self.kinetic / (3.0 * atoms as f64 * BOLTZMANN)
    }
}

impl Simulation {
    /// Atoms with velocities of a temperature, in kelvin, the same in every run; together they stand still. `forces` are those of the structure.
    ///
    /// # Errors
    /// An atom is of no element that ethanol has.
    pub fn new(structure: Structure, temperature: f64, forces: Forces) -> Result<Self, String> {
        let masses = structure.types.iter().map(|&atomic_number| mass(atomic_number)).collect::<Result<Vec<_>, _>>()?;
        let mut random = Random(1);
        let mut velocities: Vec<f64> = masses
            .iter()
            .flat_map(|mass| [(BOLTZMANN * temperature / mass * ACCELERATION).sqrt(); 3])
            .map(|width| width * random.normal())
            .collect();
        let total: f64 = masses.iter().sum();
        for axis in 0..3 {
            let momentum: f64 = masses.iter().enumerate().map(|(atom, mass)| mass * velocities[3 * atom + axis]).sum();
            (0..masses.len()).for_each(|atom| velocities[3 * atom + axis] -= momentum / total);
        }
        Ok(Self { structure, velocities, masses, present: forces, time: 0.0 })
    }

    /// One step. `forces` says what acts on a structure.
    ///
    /// # Errors
    /// Those of `forces`.
    pub fn step<E>(
        &mut self,
        time_step: f64,
        mut forces: impl FnMut(&Structure) -> Result<Forces, E>,
    ) -> Result<(), E> {
        self.accelerate(time_step / 2.0);
        for (position, velocity) in self.structure.positions.iter_mut().zip(&self.velocities) {
            *position += time_step * velocity;
        }
        self.present = forces(&self.structure)?;
        self.accelerate(time_step / 2.0);
        self.time += time_step;
        Ok(())
    }

    fn accelerate(&mut self, time: f64) {
        for (place, (velocity, force)) in self.velocities.iter_mut().zip(&self.present.forces).enumerate() {
            *velocity += time * ACCELERATION * force / self.masses[place / 3];
        }
    }

    /// The energies now.
    pub fn state(&self) -> State {
        let twice: f64 =
            self.velocities.iter().enumerate().map(|(place, velocity)| self.masses[place / 3] * velocity.powi(2)).sum();
        State { time: self.time, potential: self.present.energy, kinetic: twice / 2.0 / ACCELERATION }
    }
}

/// The standard deviation of some numbers.
pub fn deviation(numbers: &[f64]) -> f64 {
    let count = numbers.len().max(1) as f64;
    // From the first, because energies of electrons are large beside their changes.
    let first = numbers.first().copied().unwrap_or_default();
    let mean = numbers.iter().map(|number| number - first).sum::<f64>() / count;
    (numbers.iter().map(|number| (number - first - mean).powi(2)).sum::<f64>() / count).sqrt()
}

fn mass(atomic_number: i32) -> Result<f64, String> {
    match atomic_number {
        1 => Ok(1.008),
        6 => Ok(12.011),
        8 => Ok(15.999),
        _ => Err(format!("the mass of the element {atomic_number} is not known")),
    }
}

/// Numbers that look random and are the same in every run (Steele, Lea and Flood's SplitMix64, and the transform of Box and Muller).
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // In (0, 1], of which there is a logarithm.
        (((mixed ^ (mixed >> 31)) >> 11) as f64 + 1.0) / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Springs that pull each atom to where it stood.
    fn springs(start: &Structure, structure: &Structure) -> Result<Forces, String> {
        let away: Vec<f64> = structure.positions.iter().zip(&start.positions).map(|(now, then)| now - then).collect();
        let energy = away.iter().map(|away| 10.0 * away.powi(2)).sum();
        Ok(Forces { energy, forces: away.iter().map(|away| -20.0 * away).collect() })
    }

    /// The standard deviations of the total and of the potential energy over 100 fs.
    fn moved(time_step: f64) -> (f64, f64) {
        let start = Structure::ethanol(2);
        let forces = springs(&start, &start).unwrap();
        let mut simulation = Simulation::new(start.clone(), 300.0, forces).unwrap();
        let mut states = vec![simulation.state()];
        for _ in 0..(100.0 / time_step) as usize {
            simulation.step(time_step, |structure| springs(&start, structure)).unwrap();
            states.push(simulation.state());
        }
        let of = |what: fn(&State) -> f64| deviation(&states.iter().map(what).collect::<Vec<_>>());
        (of(State::total), of(|state| state.potential))
    }

    #[test]
    fn energy_is_conserved_and_four_times_better_with_half_the_step() {
        let (coarse, fine) = (moved(0.5), moved(0.25));
        assert!(coarse.0 < 0.05 * coarse.1, "{coarse:?}");
        // Second order: the factor is 4 but for terms of higher order.
        assert!((3.5..4.5).contains(&(coarse.0 / fine.0)), "{coarse:?} {fine:?}");
    }

    #[test]
    fn the_first_velocities_have_their_temperature_and_no_momentum() {
        let structure = Structure::ethanol(1000);
        assert_eq!((structure.types.len(), structure.box_edge), (9000, Some(60.0)));
        let forces = Forces { energy: 0.0, forces: vec![0.0; 27000] };
        let simulation = Simulation::new(structure, 300.0, forces).unwrap();
        // 27 000 normal numbers: their mean square is 1 within 2.6 percent three times out of a thousand.
        let temperature = simulation.state().temperature(9000);
        assert!((temperature - 300.0).abs() < 8.0, "{temperature}");
        let momentum: f64 = (0..9000).map(|atom| simulation.masses[atom] * simulation.velocities[3 * atom]).sum();
        assert!(momentum.abs() < 1e-9, "{momentum}");
    }
}
