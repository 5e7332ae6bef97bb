//! The grammar: precedence climbing over the text.

use super::{Binary, Expression, FUNCTIONS_OF_ONE, FUNCTIONS_OF_TWO, IdField, Unary, code, is_plain};

/// Parses an expression; the error says what was expected where.
pub(crate) fn parse(text: &str) -> Result<Expression<String>, String> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    let expression = parser.expression(0)?;
    match parser.rest() {
        "" => Ok(expression),
        rest => Err(format!("`{text}`: expected an operator or the end, found `{rest}`")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    /// Nesting beyond any that a person writes.
    const DEPTH_MAX: usize = 64;

    fn rest(&mut self) -> &'a str {
        let rest = self.text[self.at..].trim_start();
        self.at = self.text.len() - rest.len();
        rest
    }

    fn expected<T>(&mut self, what: &str) -> Result<T, String> {
        let (text, rest) = (self.text, self.rest());
        let found = if rest.is_empty() { "the end".to_owned() } else { format!("`{rest}`") };
        Err(format!("`{text}`: expected {what}, found {found}"))
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = self.rest().strip_prefix(symbol).is_some_and(|after| {
            // A word ends where it ends.
            !symbol.ends_with(char::is_alphabetic) || !after.starts_with(|c: char| c.is_alphanumeric() || c == '_')
        });
        self.at += if found { symbol.len() } else { 0 };
        found
    }

    fn expect(&mut self, symbol: &str) -> Result<(), String> {
        if self.take(symbol) { Ok(()) } else { self.expected(&format!("`{symbol}`")) }
    }

    /// Operators that bind at least as tightly as `least`, by precedence climbing.
    fn expression(&mut self, least: u8) -> Result<Expression<String>, String> {
        self.depth += 1;
        if self.depth > Parser::DEPTH_MAX {
            return Err(format!("`{}` is nested too deeply; split it up over derived features", self.text));
        }
        let mut left = self.operand(least)?;
        while let Some((operator, binding)) = self.infix(least) {
            // `a < b < c` means something else to everybody.
            let right = self.expression(binding + 1)?;
            if binding == 4 && self.infix(4).is_some() {
                return self.expected("`and` or the end after a comparison");
            }
            left = match (operator, left, right) {
                (Binary::Equal | Binary::NotEqual, Expression::Name(name), Expression::Name(text))
                    if text.starts_with('"') =>
                {
                    let Some(field) = IdField::named(&name) else {
                        return Err(format!(
                            "`{}`: only an id is compared with a text, and `{name}` is none; a number stands without quotes",
                            self.text
                        ));
                    };
                    let text = text.trim_matches('"').to_owned();
                    Expression::Is { field, code: code(&text), text, negated: operator == Binary::NotEqual }
                }
                (operator, left, right) => Expression::Binary(operator, Box::new(left), Box::new(right)),
            };
        }
        self.depth -= 1;
        Ok(left)
    }

    fn infix(&mut self, least: u8) -> Option<(Binary, u8)> {
        let before = self.at;
        for operator in Binary::INFIX {
            let (symbol, binding) = operator.infix()?;
            if binding >= least && self.take(symbol) {
                return Some((operator, binding));
            }
        }
        self.at = before;
        None
    }

    fn operand(&mut self, least: u8) -> Result<Expression<String>, String> {
        if self.take("(") {
            let inner = self.expression(0)?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.take("-") {
            return Ok(match self.expression(7)? {
                Expression::Number(number) => Expression::Number(-number),
                operand => Expression::Unary(Unary::Minus, Box::new(operand)),
            });
        }
        if least <= 3 && self.take("not") {
            return Ok(Expression::Unary(Unary::Not, Box::new(self.expression(3)?)));
        }
        let rest = self.rest();
        if rest.starts_with(|first: char| first.is_ascii_digit()) {
            return self.number(rest);
        }
        if let Some(quoted) = rest.strip_prefix('`') {
            let Some(end) = quoted.find('`') else { return self.expected("a closing backtick") };
            self.at += end + 2;
            return Ok(Expression::Name(quoted[..end].to_owned()));
        }
        if let Some(quoted) = rest.strip_prefix('"') {
            let Some(end) = quoted.find('"') else { return self.expected("a closing quote") };
            self.at += end + 2;
            // With its quotes, so that it can be told from a name; a comparison takes them off.
            return Ok(Expression::Name(rest[..end + 2].to_owned()));
        }
        let end = rest.find(|char: char| !(char.is_alphanumeric() || char == '_' || char == '.')).unwrap_or(rest.len());
        let name = &rest[..end];
        if !is_plain(name) {
            return self.expected("a feature, a field, a number or a bracket");
        }
        self.at += end;
        if !self.rest().starts_with('(') {
            return Ok(Expression::Name(name.to_owned()));
        }
        self.call(name)
    }

    fn call(&mut self, name: &str) -> Result<Expression<String>, String> {
        self.expect("(")?;
        let first = Box::new(self.expression(0)?);
        let call = if let Some((_, function)) = FUNCTIONS_OF_ONE.iter().find(|(known, _)| *known == name) {
            Expression::Unary(*function, first)
        } else if let Some((_, function)) = FUNCTIONS_OF_TWO.iter().find(|(known, _)| *known == name) {
            self.expect(",")?;
            Expression::Binary(*function, first, Box::new(self.expression(0)?))
        } else {
            return Err(format!(
                "`{}`: there is no function `{name}`; there are log1p, abs, sqrt, min and max",
                self.text
            ));
        };
        self.expect(")")?;
        Ok(call)
    }

    fn number(&mut self, rest: &str) -> Result<Expression<String>, String> {
        let end = rest.find(|char: char| !(char.is_ascii_alphanumeric() || char == '.')).unwrap_or(rest.len());
        match rest[..end].parse::<f64>() {
            Ok(number) if number.is_finite() => {
                self.at += end;
                Ok(Expression::Number(number))
            }
            _ => self.expected("a number"),
        }
    }
}
