//! Chemical symbols and atomic numbers.

/// Symbols in the order of atomic numbers; the first is hydrogen.
const SYMBOLS: [&str; 118] = [
    "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar", "K", "Ca",
    "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",
    "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I", "Xe", "Cs", "Ba", "La", "Ce",
    "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os", "Ir",
    "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U", "Np", "Pu", "Am", "Cm",
    "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf", "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc",
    "Lv", "Ts", "Og",
];

/// The atomic number of the last element that has a name.
pub const LAST_ELEMENT: i32 = SYMBOLS.len() as i32;

/// The atomic number of a symbol, in any case; `X`, a placeholder, is 0.
pub fn atomic_number(symbol: &str) -> Option<i32> {
    if symbol == "X" {
        return Some(0);
    }
    SYMBOLS.iter().position(|known| known.eq_ignore_ascii_case(symbol)).map(|position| position as i32 + 1)
}

/// The symbol of an atomic number; `X` where there is none.
pub fn symbol(atomic_number: i32) -> &'static str {
    let index = atomic_number.checked_sub(1).and_then(|index| usize::try_from(index).ok());
    index.and_then(|index| SYMBOLS.get(index)).copied().unwrap_or("X")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_and_numbers_agree() {
        for number in 0..=118 {
            assert_eq!(atomic_number(symbol(number)), Some(number));
        }
        let cases = [("H", Some(1)), ("c", Some(6)), ("Cu", Some(29)), ("CL", Some(17)), ("Q", None), ("", None)];
        for (text, expected) in cases {
            assert_eq!(atomic_number(text), expected, "{text}");
        }
        assert_eq!((symbol(-3), symbol(i32::MIN), symbol(300)), ("X", "X", "X"));
    }
}
