;; Never returns.
(func (export "kilnbox:architecture/about@0.1.0#describe") (result i32)
    (loop $for-ever (br $for-ever))
    unreachable)
