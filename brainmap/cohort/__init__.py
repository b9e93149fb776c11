"""Many runs -> one table -> differences between groups of animals, region by region."""
