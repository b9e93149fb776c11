"""The site on the web: the application, its guards, its interface for programs, its pages."""
