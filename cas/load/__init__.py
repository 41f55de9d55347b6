"""Let a framework read it: views, folders of the user's, the pickle policy, the frameworks' own loaders."""
