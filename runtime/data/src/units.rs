//! Units of length and energy, as the field writes them.

/// Angstroms in one bohr (CODATA 2018).
const BOHR: f64 = 0.529_177_210_903;
/// Electronvolts in one hartree (CODATA 2018).
const HARTREE: f64 = 27.211_386_245_988;
/// Kilojoules per mole in one electronvolt (CODATA 2018, exact).
const KILOJOULE_PER_MOLE: f64 = 96.485_332_123_310_02;
/// Kilojoules in one thermochemical kilocalorie, by definition.
const KILOCALORIE: f64 = 4.184;

/// How many angstroms the unit of length is; none where it is not known. Case does not matter.
pub fn length_in_angstrom(unit: &str) -> Option<f64> {
    match unit.to_ascii_lowercase().as_str() {
        "angstrom" | "a" | "\u{e5}" | "\u{c5}" => Some(1.0),
        "bohr" | "a0" => Some(BOHR),
        "nm" | "nanometer" => Some(10.0),
        "pm" => Some(0.01),
        "m" | "meter" => Some(1e10),
        "cm" => Some(1e8),
        "mm" => Some(1e7),
        "um" | "\u{b5}m" => Some(1e4),
        _ => None,
    }
}

/// How many electronvolts the unit of energy is; none where it is not known. Case does not matter, but for `meV` (milli) and `MeV` (mega).
pub fn energy_in_electronvolt(unit: &str) -> Option<f64> {
    if unit == "MeV" {
        return Some(1e6);
    }
    match unit.to_ascii_lowercase().as_str() {
        "ev" => Some(1.0),
        "mev" => Some(1e-3),
        "hartree" | "ha" => Some(HARTREE),
        "ry" | "rydberg" => Some(HARTREE / 2.0),
        "kj/mol" => Some(1.0 / KILOJOULE_PER_MOLE),
        "kcal/mol" => Some(KILOCALORIE / KILOJOULE_PER_MOLE),
        "j" | "joule" => Some(1.0 / 1.602_176_634e-19),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_conversions_hold() {
        // ASE 3.29 with CODATA 2018, to the digits that are beyond doubt.
        let cases = [
            (length_in_angstrom("bohr"), Some(0.529_177_210_9)),
            (length_in_angstrom("Angstrom"), Some(1.0)),
            (length_in_angstrom("furlong"), None),
            (energy_in_electronvolt("kcal/mol"), Some(0.043_364_104)),
            (energy_in_electronvolt("Hartree"), Some(27.211_386_25)),
            (energy_in_electronvolt("meV"), Some(1e-3)),
            (energy_in_electronvolt("MeV"), Some(1e6)),
            (energy_in_electronvolt(""), None),
        ];
        for (found, expected) in cases {
            match (found, expected) {
                (Some(found), Some(expected)) => {
                    assert!((found / expected - 1.0_f64).abs() < 1e-8, "{found} {expected}")
                }
                (found, expected) => assert_eq!(found, expected),
            }
        }
    }
}
