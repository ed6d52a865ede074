"""Members, or every row's own model, whose weights another network generates."""
