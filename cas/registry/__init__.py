"""Who trained what: records, Determined masters, the catalog, and the choice of the best."""
