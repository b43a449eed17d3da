"""Pictures that lie elsewhere, by https, http, s3 or gs, fetched behind a guard."""
